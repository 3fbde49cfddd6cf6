//! The command line: which command, and the settings that its flags give. All flags come from the table of
//! [`crate::config`]. Nothing is printed and nothing exits here; `main` does both.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use clap_complete::Shell;

use crate::config::{Config, Errors, Kind, SETTINGS, Setting, Sources};
use crate::tail::{RATE_DEFAULT, RATE_MAX};

/// The exit code of a wrong command line or configuration, as clap has it for its own errors.
pub const EXIT_CONFIGURATION: u8 = 2;

/// The program behind `standpipe asg-lifecycle`, which stands beside this one: most relays have no use for it, and the
/// SDK that it needs is large.
pub const ASG_LIFECYCLE: &str = "standpipe-asg-lifecycle";

/// What the process is asked to do.
#[derive(Debug)]
pub enum Command {
    /// `standpipe` or `standpipe relay`: run. With errors: print them and exit with [`EXIT_CONFIGURATION`].
    Relay {
        /// The configuration to start with.
        config: Result<Box<Config>, Errors>,
        /// Where it comes from, and is read again.
        sources: Sources,
    },
    /// `standpipe check FILE`: print the resolved plan, or the errors as above.
    Check(Result<Box<Config>, Errors>),
    /// `standpipe config`: print [`Config::default_toml`].
    PrintConfig,
    /// `standpipe send`: send the lines of standard input.
    Send {
        /// The stream that they go to, not checked yet.
        stream: String,
        /// The relay's address, not checked yet.
        to: String,
    },
    /// `standpipe send --dead-letter`: send dead letters again.
    Replay {
        /// Files of them, or directories with such files.
        paths: Vec<PathBuf>,
        /// The relay's address, not checked yet.
        to: String,
    },
    /// `standpipe health`: ask a running relay.
    Health {
        /// The configuration of the relay that is asked, for its admin address.
        config: Result<Box<Config>, Errors>,
        /// Whether it has to be ready, and not only alive.
        ready: bool,
    },
    /// `standpipe tail`: show live events of a running relay.
    Tail {
        /// The configuration of the relay that is asked, for its admin address.
        config: Result<Box<Config>, Errors>,
        /// The stream, not checked yet.
        stream: String,
        /// The most events a second.
        rate: u32,
        /// The most events in all.
        count: Option<u64>,
    },
    /// `standpipe completions SHELL`: print a completion script.
    Completions(Shell),
    /// `standpipe man`: print the manual page.
    Man,
    /// `standpipe asg-lifecycle`: become [`ASG_LIFECYCLE`] with these arguments.
    AsgLifecycle(Vec<OsString>),
}

/// What `--version` prints: the version of the crate and the commit that it was built from.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");

/// Reads the command line, and for the commands that need it the whole configuration.
///
/// # Errors
///
/// clap's, for a wrong command line as well as for `--help` and `--version`: `main` calls its `exit`.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Command, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    let sources = |matches: &ArgMatches| sources(matches, environment.into_iter().collect());
    let load = |sources: Sources| Config::load(sources).map(Box::new);
    let relay = |sources: Sources| Command::Relay { config: load(sources.clone()), sources };
    Ok(match matches.subcommand() {
        Some(("config", _)) => Command::PrintConfig,
        Some(("send", matches)) => {
            let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
            match matches.get_many::<PathBuf>("dead-letter") {
                Some(paths) => Command::Replay { paths: paths.cloned().collect(), to: text("to") },
                None => Command::Send { stream: text("stream"), to: text("to") },
            }
        }
        Some(("asg-lifecycle", matches)) => {
            let arguments = matches.get_many::<OsString>("arguments").into_iter().flatten();
            Command::AsgLifecycle(arguments.cloned().collect())
        }
        Some(("check", matches)) => Command::Check(load(sources(matches))),
        Some(("health", matches)) => {
            Command::Health { config: load(sources(matches)), ready: matches.get_flag("ready") }
        }
        Some(("tail", matches)) => Command::Tail {
            config: load(sources(matches)),
            stream: matches.get_one::<String>("stream").cloned().unwrap_or_default(),
            rate: *matches.get_one("rate").expect("it has a default"),
            count: matches.get_one("count").copied(),
        },
        Some(("completions", matches)) => {
            Command::Completions(*matches.get_one("shell").expect("clap has checked that it is there"))
        }
        Some(("man", _)) => Command::Man,
        Some((_, matches)) => relay(sources(matches)),
        None => relay(sources(&matches)),
    })
}

/// The whole command line, as clap knows it.
pub fn command() -> clap::Command {
    clap::Command::new("standpipe")
        .bin_name("standpipe")
        .version(VERSION)
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .override_usage(
            "standpipe [relay] [OPTIONS]\n       standpipe check [FILE] [OPTIONS]\n       standpipe config\n       \
             standpipe send STREAM [--to ADDR]\n       standpipe send --dead-letter PATH... [--to ADDR]\n       \
             standpipe health [--ready] [--admin ADDR]\n       \
             standpipe tail STREAM [--rate N] [--count N] [--admin ADDR]\n       \
             standpipe asg-lifecycle --hook NAME [OPTIONS]",
        )
        .after_help(AFTER_HELP)
        .args_conflicts_with_subcommands(true)
        .max_term_width(110)
        .subcommand_help_heading("Commands")
        .disable_help_subcommand(true)
        .arg(file_flag())
        .args(SETTINGS.iter().map(flag))
        .subcommand(relay())
        .subcommand(check())
        .subcommand(send())
        .subcommand(asg_lifecycle())
        .subcommand(clap::Command::new("config").about("Print the commented default configuration"))
        .subcommand(health())
        .subcommand(tail())
        .subcommand(completions())
        .subcommand(clap::Command::new("man").about("Print the manual page, in roff"))
}

const AFTER_HELP: &str = "\
    Every setting can also stand in the file (`standpipe config` prints one) or in the environment, as \
    STANDPIPE_LINGER for --linger. A flag has precedence over the environment, and that over the file. \
    AWS credentials come from where the AWS SDKs look for them.";

fn relay() -> clap::Command {
    clap::Command::new("relay")
        .about("Run the relay (the default)")
        .max_term_width(110)
        .arg(file_flag())
        .args(SETTINGS.iter().map(flag))
}

fn check() -> clap::Command {
    let file = Arg::new("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("The configuration to check, together with the environment and the flags given here");
    clap::Command::new("check")
        .about("Check a configuration and print the plan that follows from it")
        .max_term_width(110)
        .arg(file)
        .args(SETTINGS.iter().map(flag))
}

fn send() -> clap::Command {
    let stream = Arg::new("stream")
        .value_name("STREAM")
        .required_unless_present("dead-letter")
        .conflicts_with("dead-letter")
        .help("The stream of the events");
    let dead_letter = Arg::new("dead-letter")
        .long("dead-letter")
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .num_args(1..)
        .action(ArgAction::Append)
        .help("Send these dead letters again, each to its own stream: files, or directories of them")
        .long_help(
            "Send these dead letters again, each to its own stream: files, or directories of them. A file is removed \
             once all of it is synced",
        );
    let to = Arg::new("to")
        .long("to")
        .value_name("ADDR")
        .default_value("127.0.0.1:15555")
        .help("The relay, as HOST:PORT or unix:PATH");
    clap::Command::new("send")
        .about("Send the lines of standard input, or dead letters, as events, and end when they are synced")
        .max_term_width(110)
        .after_help("Exit codes: 0 all events are safe, 1 some are lost or nothing is known of them.")
        .args([stream, to, dead_letter])
}

fn health() -> clap::Command {
    let ready = Arg::new("ready")
        .long("ready")
        .action(ArgAction::SetTrue)
        .help("Ask whether it is ready, and not only whether it lives");
    clap::Command::new("health")
        .about("Ask the relay on this host whether it lives")
        .after_help("Exit codes: 0 it does, 1 it does not.")
        .args([ready, file_flag()])
        .args(SETTINGS.iter().filter(|setting| setting.key == "admin").map(flag))
}

fn tail() -> clap::Command {
    let stream = Arg::new("stream").value_name("STREAM").required(true).help("The stream of the events");
    let rate = Arg::new("rate")
        .long("rate")
        .value_name("N")
        .value_parser(value_parser!(u32).range(1..=i64::from(RATE_MAX)))
        .default_value(RATE_DEFAULT.to_string())
        .help("Most events a second");
    let count = Arg::new("count")
        .long("count")
        .value_name("N")
        .value_parser(value_parser!(u64).range(1..))
        .help("End after so many events");
    clap::Command::new("tail")
        .about("Show a sample of the events that the relay on this host receives, as they come")
        .after_help(
            "A sample, not all there are: it takes nothing from anybody, and a slow reader misses events. An event \
             longer than 8 KiB is cut. Exit codes: 0 it has ended, 1 no relay shows events of the stream.",
        )
        .args([stream, rate, count, file_flag()])
        .args(SETTINGS.iter().filter(|setting| setting.key == "admin").map(flag))
}

fn completions() -> clap::Command {
    let shell = Arg::new("shell")
        .value_name("SHELL")
        .required(true)
        .value_parser(value_parser!(Shell))
        .help("The shell that completes");
    clap::Command::new("completions").about("Print a shell's completion script").arg(shell)
}

fn asg_lifecycle() -> clap::Command {
    let arguments = Arg::new("arguments")
        .value_name("OPTIONS")
        .num_args(0..)
        .trailing_var_arg(true)
        .allow_hyphen_values(true)
        .value_parser(value_parser!(OsString));
    clap::Command::new("asg-lifecycle")
        .about("Drain the relay before its instance leaves an Auto Scaling group")
        .disable_help_flag(true)
        .arg(arguments)
}

fn file_flag() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("Read settings from this TOML file")
}

/// The flag of a setting.
fn flag(setting: &Setting<Config>) -> Arg {
    let help = match setting.default_word().as_str() {
        "" => setting.help.to_owned(),
        default => format!("{} [default: {default}]", setting.help),
    };
    let long_help = [setting.doc, &setting.kind.limits()].join(" ");
    let argument = Arg::new(setting.key)
        .long(setting.flag())
        .value_name(setting.kind.value_name())
        .value_parser(value_parser!(OsString))
        .help_heading(setting.group.heading())
        .long_help(format!("{help}\n{}", long_help.trim()))
        .help(help);
    match setting.kind {
        Kind::List { .. } => argument.action(ArgAction::Append),
        Kind::Switch { .. } => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => argument.action(ArgAction::Set),
    }
}

/// What the flags say, with the environment.
fn sources(matches: &ArgMatches, environment: Vec<(OsString, OsString)>) -> Sources {
    let values = |setting: &Setting<Config>| {
        let key = setting.key.to_owned();
        matches
            .try_get_many::<OsString>(setting.key)
            .unwrap_or_default()
            .into_iter()
            .flatten()
            .map(move |value| (key.clone(), value.clone()))
            .collect::<Vec<_>>()
    };
    Sources {
        file: matches.get_one::<PathBuf>("config").cloned(),
        environment,
        flags: SETTINGS.iter().flat_map(values).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Command, clap::Error> {
        run_in(&[], arguments)
    }

    fn run_in(environment: &[(&str, &str)], arguments: &[&str]) -> Result<Command, clap::Error> {
        let arguments = std::iter::once("standpipe").chain(arguments.iter().copied()).map(OsString::from);
        parse(arguments, environment.iter().map(|(name, value)| (name.into(), value.into())))
    }

    fn relay_config(arguments: &[&str]) -> Config {
        match run(arguments).expect("a good command line") {
            Command::Relay { config: Ok(config), .. } => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn relay_is_the_default_command() {
        assert_eq!(relay_config(&[]), Config::default());
        assert_eq!(relay_config(&["relay"]), Config::default());
        let with = |arguments| relay_config(arguments).shards;
        assert_eq!((with(&["--shards", "3"]), with(&["relay", "--shards=3"])), (Some(3), Some(3)));
    }

    #[test]
    fn listen_may_be_repeated_and_a_switch_needs_no_value() {
        let config = relay_config(&["--listen", "127.0.0.1:0", "--listen", "unix:/run/a,b", "--takeover"]);
        let addresses: Vec<_> = config.listen.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["127.0.0.1:0", "unix:/run/a,b"]);
        assert!(config.takeover);
        assert!(!relay_config(&["--takeover=false"]).takeover);
    }

    #[test]
    fn a_flag_beats_the_environment() {
        let environment = [("STANDPIPE_LINGER", "2s"), ("STANDPIPE_SHARDS", "2")];
        match run_in(&environment, &["--linger", "3s"]) {
            Ok(Command::Relay { config: Ok(config), .. }) => {
                assert_eq!((config.linger.as_secs(), config.shards), (3, Some(2)));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn check_takes_a_file_and_flags() {
        assert!(matches!(run(&["check"]), Ok(Command::Check(Ok(_)))));
        assert!(matches!(run(&["check", "--memory", "64MiB"]), Ok(Command::Check(Ok(_)))));
        match run(&["check", "no/such/file.toml", "--shards", "0"]) {
            Ok(Command::Check(Err(errors))) => assert_eq!(errors.iter().count(), 2, "{errors}"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(run(&["config"]), Ok(Command::PrintConfig)));
    }

    #[test]
    fn the_arguments_of_the_lifecycle_helper_are_its_own() {
        for arguments in [&["--hook", "drain", "--poll=1s"][..], &["--help"], &[]] {
            match run(&[&["asg-lifecycle"], arguments].concat()) {
                Ok(Command::AsgLifecycle(passed)) => assert_eq!(passed, arguments),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_wrong_command_line_exits_as_a_wrong_configuration_does() {
        for arguments in [&["--listn", "x"][..], &["relya"], &["config", "--linger", "1s"], &["--linger"]] {
            let error = run(arguments).expect_err("a wrong command line");
            assert_eq!(error.exit_code(), i32::from(EXIT_CONFIGURATION), "{arguments:?}");
        }
        for arguments in [["--help"], ["-h"], ["--version"]] {
            assert_eq!(run(&arguments).expect_err("clap has something to print").exit_code(), 0);
        }
    }

    #[test]
    fn help_shows_every_flag_under_its_heading_with_its_default() {
        let short = command().render_help().to_string();
        let long = command().render_long_help().to_string();
        for setting in SETTINGS {
            assert!(short.contains(&format!("--{}", setting.flag())), "{}", setting.key);
            assert!(short.contains(&format!("{}:\n", setting.group.heading())), "{}", setting.key);
        }
        let words: Vec<_> = long.split_whitespace().collect();
        assert!(words.join(" ").contains("[default: 1s] Longer means fuller records"), "{long}");
    }
}
