//! `loadgen`: the command line over the library. Exit codes: 0 all well, 1 something was lost or went wrong
//! while running, 2 it could not start.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use loadgen::profile::{self, Own, html, session};
use loadgen::progress::Follower;
use loadgen::send::{Load, Plan, Progress, Target, send};
use loadgen::sink::{Settings, Sink};
use loadgen::units::parse_duration;
use loadgen::{backlog, chaos, durability, floor, outage, report, run, write_json};

#[derive(Parser)]
#[command(
    name = "loadgen",
    version,
    about = "Loads an event relay, plays the service behind it, and verifies every event"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends generated events over TCP or a Unix socket.
    Send(Box<SendArguments>),
    /// Plays Amazon Data Firehose: checks every limit, keeps a ledger, fails on purpose.
    Sink(Box<SinkArguments>),
    /// Starts sink and relay, sends, accounts for every event, and reports.
    #[command(args_override_self = true)]
    Run(Box<RunArguments>),
    /// Kills relays again and again, under load, and accounts for every event that a client was promised.
    #[command(args_override_self = true)]
    Chaos(Box<chaos::Options>),
    /// Takes the endpoint away for a while under a steady load: what is lost, how long the backlog takes, and how late
    /// fresh events are beside it.
    #[command(args_override_self = true)]
    Outage(Box<outage::Options>),
    /// Fills a spool and starts the relay again: how long until it accepts, and whether all of it arrives.
    #[command(args_override_self = true)]
    Backlog(Box<backlog::Options>),
    /// Compares a relay that writes everything to disk with one that writes nothing, and with what the disk can do.
    #[command(args_override_self = true)]
    Durability(Box<durability::Options>),
    /// A bare receiver, started by `run --floor`.
    #[command(hide = true, subcommand)]
    Floor(Floor),
}

#[derive(clap::Args)]
struct SendArguments {
    /// Where to: HOST:PORT or unix:PATH.
    #[arg(long, value_name = "ADDR")]
    to: Target,
    #[command(flatten)]
    load: Load,
    /// Shows a progress bar, on a terminal.
    #[arg(long)]
    progress: bool,
    /// Bind the sending threads to this CPU.
    #[arg(long, value_name = "CPU")]
    pin: Option<usize>,
    /// Writes what was sent as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
}

#[derive(clap::Args)]
struct SinkArguments {
    /// Where to listen; port 0 takes any. The first line on standard output tells.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    listen: SocketAddr,
    /// Seed of the faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Bind the sink to this CPU.
    #[arg(long, value_name = "CPU")]
    pin: Option<usize>,
    /// Writes the ledger as JSON when told to stop (SIGTERM or SIGINT); `-` is standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Floor {
    /// Reads and discards until it is killed.
    Receive {
        /// Pause before each look at the connections.
        #[arg(long, default_value = "0s", value_parser = parse_duration)]
        pause: Duration,
        /// Threads, each with connections of its own.
        #[arg(long, default_value_t = 1)]
        loops: usize,
    },
}

#[derive(clap::Args)]
struct RunArguments {
    #[command(flatten)]
    own: Own,
    #[command(flatten)]
    options: run::Options,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Send(arguments) => run_send(*arguments),
        Command::Sink(arguments) => run_sink(*arguments),
        Command::Run(arguments) => run_run(*arguments),
        Command::Chaos(options) => chaos::run(&options),
        Command::Floor(Floor::Receive { pause, loops }) => floor::receive::serve(pause, loops).map(|()| true),
        Command::Outage(options) => outage::run_outage(&options),
        Command::Backlog(options) => backlog::run_backlog(&options),
        Command::Durability(options) => durability::run_durability(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("loadgen: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run_send(arguments: SendArguments) -> anyhow::Result<bool> {
    let plan = Plan::new(arguments.load)?;
    let progress = Progress::default();
    let follower = arguments.progress.then(|| Follower::new(progress.clone(), plan.events()));
    let sent = send(&plan, &arguments.to, &progress, arguments.pin)?;
    drop(follower);
    eprintln!("{}", report::sent(&sent));
    sent.errors.iter().for_each(|error| eprintln!("loadgen: {error}"));
    if let Some(path) = &arguments.json {
        write_json(path, &sent)?;
    }
    Ok(sent.is_complete())
}

fn run_sink(arguments: SinkArguments) -> anyhow::Result<bool> {
    let stop = Stop::new()?;
    let sink = Sink::start(arguments.listen, arguments.seed, arguments.settings, arguments.pin)?;
    println!("listening on http://{}", sink.address());
    eprintln!("seed {}", arguments.seed);
    stop.wait();
    let totals = sink.totals();
    eprintln!("{}", report::totals(&totals));
    if let Some(path) = &arguments.json {
        write_json(path, &totals)?;
    }
    Ok(true)
}

fn run_run(arguments: RunArguments) -> anyhow::Result<bool> {
    let RunArguments { own, options } = arguments;
    if let Some(files) = &own.compare {
        println!("{}", profile::compare::compare(&files[0], &files[1])?);
        return Ok(true);
    }
    // What follows `loadgen run`: a profile puts its own flags before these.
    let typed: Vec<String> = std::env::args().skip(2).collect();
    match own.profile {
        Some(name) => run_profile(name, &own, &typed),
        None => run_once(&own, options, &typed),
    }
}

fn run_profile(name: profile::table::Name, own: &Own, typed: &[String]) -> anyhow::Result<bool> {
    let summary = session::run_profile(name, own, typed)?;
    eprintln!("{}", summary.text());
    if let Some(path) = &own.json {
        write_json(path, &summary)?;
    }
    write_html(own, &summary)?;
    Ok(summary.ok)
}

fn run_once(own: &Own, options: run::Options, typed: &[String]) -> anyhow::Result<bool> {
    anyhow::ensure!(own.repeat == 1, "--repeat needs --profile");
    let mut floors = own.floor.then(|| floor::measure(&options)).transpose()?;
    let report = run::run(options.clone())?;
    if let Some(floors) = &mut floors {
        floors.complete(&options, &report)?;
    }
    eprintln!("{}", report.text());
    if let Some(path) = &own.json {
        write_json(path, &report)?;
    }
    if own.html.is_some() || floors.is_some() {
        let summary = session::of_run(&report, floors.as_ref(), &options, typed);
        eprintln!("{}", summary.text());
        write_html(own, &summary)?;
    }
    Ok(report.ok)
}

fn write_html(own: &Own, summary: &profile::summary::Summary) -> anyhow::Result<()> {
    let Some(path) = &own.html else { return Ok(()) };
    std::fs::write(path, html::page(summary)).with_context(|| format!("`{path}` could not be written"))
}

/// SIGTERM or SIGINT, heard from the moment that this is made.
struct Stop {
    runtime: tokio::runtime::Runtime,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no runtime for signals could be started")?;
        let _context = runtime.enter();
        let terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be heard")?;
        let interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be heard")?;
        drop(_context);
        Ok(Self { runtime, terminate, interrupt })
    }

    fn wait(mut self) {
        self.runtime.block_on(async {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
        });
    }
}
