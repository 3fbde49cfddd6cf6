//! The `standpipe` command. Reads the command line, runs what was asked for, and decides the exit codes:
//! 0 done, 1 cannot start or lines were lost, 2 bad configuration, 3 drained with events left behind.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use standpipe::cli::{self, Command};
use standpipe::config::{Config, DestinationChoice, Sources};
use standpipe::drain::Drained;
use standpipe::log::Log;
use standpipe::memory::{Machine, Plan};
use standpipe::{health, relay, send, tail};

/// Gives memory back to the system as it falls idle, and wastes little of it in fragments.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Two arenas, so that what shards and delivery free is used again by each other; pages go back within a second.
#[allow(unsafe_code, reason = "the allocator reads its options from this symbol")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8; 72] =
    b"narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0,background_thread:true\0\0\0";

const CANNOT_START: u8 = 1;
const EVENTS_LEFT: u8 = 3;
const LINES_LOST: u8 = 1;
const UNHEALTHY: u8 = 1;
const NOTHING_SHOWN: u8 = 1;

fn main() -> ExitCode {
    let command = cli::parse(std::env::args_os(), std::env::vars_os()).unwrap_or_else(|error| error.exit());
    match command {
        Command::Relay { config: Ok(config), sources } => run(*config, sources),
        Command::Check(Ok(config)) => check(&config),
        Command::PrintConfig => print(Config::default_toml().as_bytes()),
        Command::Send { stream, to } => send_lines(&stream, &to),
        Command::Replay { paths, to } => send_dead_letters(&paths, &to),
        Command::AsgLifecycle(arguments) => become_asg_lifecycle(arguments),
        Command::Health { config: Ok(config), ready } => ask_health(&config, ready),
        Command::Tail { config: Ok(config), stream, rate, count } => {
            show_events(&config, &stream, rate, count)
        }
        Command::Completions(shell) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut cli::command(), "standpipe", &mut script);
            print(&script)
        }
        Command::Man => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(cli::command()).render(&mut page);
            rendered.expect("a vector takes all that is written to it");
            print(&page)
        }
        Command::Relay { config: Err(errors), .. }
        | Command::Check(Err(errors))
        | Command::Health { config: Err(errors), .. }
        | Command::Tail { config: Err(errors), .. } => {
            eprintln!("{errors}");
            ExitCode::from(cli::EXIT_CONFIGURATION)
        }
    }
}

fn run(config: Config, sources: Sources) -> ExitCode {
    let log = Log::start(&config.log);
    abort_on_panic();
    raise_file_limit();
    let plan = match Plan::new(&config, Machine::detect()) {
        Ok(plan) => plan,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::from(cli::EXIT_CONFIGURATION);
        }
    };
    tune_allocator(plan.total);
    match serve(config, sources, plan, log) {
        Ok(Drained::Clean) => ExitCode::SUCCESS,
        Ok(Drained::Left(events)) => {
            tracing::error!("events left when the drain ended: {events}; they are dropped and counted");
            ExitCode::from(EVENTS_LEFT)
        }
        Err(error) => {
            tracing::error!("cannot start: {error:#}");
            ExitCode::from(CANNOT_START)
        }
    }
}

fn serve(config: Config, sources: Sources, plan: Plan, log: Log) -> anyhow::Result<Drained> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("delivery")
        .enable_all()
        .build()
        .context("the delivery threads cannot be started")?;
    let drained = runtime.block_on(relay::run(config, sources, plan, log));
    // Calls that were given up must not hold the process.
    runtime.shutdown_background();
    drained
}

/// `standpipe check`: the plan on this machine, or what is wrong with the configuration.
fn check(config: &Config) -> ExitCode {
    raise_file_limit();
    match Plan::new(config, Machine::detect()) {
        Ok(plan) => {
            config.without_effect().iter().for_each(|sentence| eprintln!("warning: {sentence}"));
            print(format!("{}\n\n{plan}\n", summary(config)).as_bytes())
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(cli::EXIT_CONFIGURATION)
        }
    }
}

fn summary(config: &Config) -> String {
    let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    let region = match (&config.destination, &config.delivery_stream_defaults.region) {
        (DestinationChoice::Firehose, Some(region)) => format!(", region {region}"),
        (DestinationChoice::Firehose, None) => {
            ", in the region of AWS_REGION or of the AWS profile".to_owned()
        }
        _ => String::new(),
    };
    format!(
        "{:<14} {}\n{:<14} {}\n{:<14} {}{region}\n{:<14} {:?}\n{:<14} {}",
        "listen",
        listen.join(", "),
        "admin",
        config.admin,
        "destination",
        config.destination,
        "linger",
        config.linger,
        "streams",
        match config.streams.len() {
            0 => "none configured".to_owned(),
            count => format!("{count} configured"),
        },
    )
}

/// `standpipe send`: silent where all is well.
fn send_lines(stream: &str, to: &str) -> ExitCode {
    match send::send(stream, to, std::io::stdin().lock(), |sentence| eprintln!("waiting: {sentence}")) {
        Ok(sent) if sent.is_whole() => ExitCode::SUCCESS,
        Ok(sent) => {
            let (synced, lost, refused) = (sent.report.synced, sent.report.lost, sent.refused);
            eprintln!(
                "{synced} events are synced; the relay has lost {lost}; \
                 {refused} lines were not sent, since they are empty or too long"
            );
            ExitCode::from(LINES_LOST)
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(LINES_LOST)
        }
    }
}

/// `standpipe send --dead-letter`: silent where all is well.
fn send_dead_letters(paths: &[PathBuf], to: &str) -> ExitCode {
    match send::replay::replay(paths, to, |sentence| eprintln!("waiting: {sentence}")) {
        Ok(replayed) if replayed.kept.is_empty() => ExitCode::SUCCESS,
        Ok(replayed) => {
            replayed.kept.iter().for_each(|sentence| eprintln!("{sentence}"));
            let (files, events) = (replayed.files, replayed.events);
            eprintln!("{events} events of {files} files are synced, and those files removed");
            ExitCode::from(LINES_LOST)
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(LINES_LOST)
        }
    }
}

/// `standpipe health`: silent where all is well.
fn ask_health(config: &Config, ready: bool) -> ExitCode {
    match health::ask(config.admin, ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::from(UNHEALTHY)
        }
    }
}

/// `standpipe tail`: events on standard output, all else on standard error.
fn show_events(config: &Config, stream: &str, rate: u32, count: Option<u64>) -> ExitCode {
    let say = |note: &str| eprintln!("{note}");
    match tail::ask(config.admin, stream, rate, count, &mut std::io::stdout(), say) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::from(NOTHING_SHOWN)
        }
    }
}

/// Becomes the program beside this one; returns only where there is none.
fn become_asg_lifecycle(arguments: Vec<std::ffi::OsString>) -> ExitCode {
    use std::os::unix::process::CommandExt;
    let here = std::env::current_exe().unwrap_or_default();
    let program = here.with_file_name(cli::ASG_LIFECYCLE);
    let error = std::process::Command::new(&program).args(arguments).exec();
    eprintln!("{} cannot be run: {error}; install it beside standpipe", program.display());
    ExitCode::from(CANNOT_START)
}

/// Prints, and does not mind a reader that went away.
fn print(text: &[u8]) -> ExitCode {
    let _ = std::io::stdout().write_all(text);
    ExitCode::SUCCESS
}

/// A thread that panics leaves events behind that nobody counts any more: end, and let a supervisor start anew.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

/// Below this limit freed pages go back at once. Kept for a second they would be a third of a limit of 64 MiB, on
/// top of what is in use (measured: a peak of 75 MiB instead of 45 in an outage of ten seconds).
const KEEP_PAGES_FROM: u64 = 1 << 30;

/// Has the allocator keep no freed pages where memory is short. Called before any other thread runs, so that only
/// the first arena exists.
#[allow(unsafe_code, reason = "the allocator is tuned by name")]
fn tune_allocator(limit: u64) {
    if limit >= KEEP_PAGES_FROM {
        return;
    }
    for name in [&b"arenas.dirty_decay_ms\0"[..], &b"arena.0.dirty_decay_ms\0"[..]] {
        // SAFETY: both names end with a NUL and take an ssize_t (jemalloc(3)).
        let tuned = unsafe { tikv_jemalloc_ctl::raw::write(name, 0isize) };
        if let Err(error) = tuned {
            tracing::warn!(
                "freed memory goes back to the system late: the allocator refuses to be tuned ({error})"
            );
        }
    }
}

/// Connections need files: as many as the system allows.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
