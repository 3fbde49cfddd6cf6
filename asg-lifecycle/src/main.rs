//! `standpipe asg-lifecycle`: drains the relay on this instance before the instance leaves its Auto Scaling group. It
//! waits until the instance is to be terminated, tells the relay to drain, keeps the lifecycle action alive until the
//! relay is gone, and completes it. It holds no events and has no part in delivering them.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

mod hook;
mod relay;

use self::hook::Hook;

/// The exit code where the relay was not gone in time, or something failed for good.
const FAILED: u8 = 1;

/// Drain the relay before its instance leaves an Auto Scaling group
#[derive(Debug, Parser)]
#[command(name = "standpipe asg-lifecycle", version, max_term_width = 110)]
struct Options {
    /// Name of the lifecycle hook, which is one for autoscaling:EC2_INSTANCE_TERMINATING
    #[arg(long, value_name = "NAME")]
    hook: String,
    /// Name of the Auto Scaling group [default: asked from Auto Scaling]
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// The relay's admin address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9155")]
    admin: SocketAddr,
    /// How often the instance's metadata is asked
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    poll: Duration,
    /// How often a heartbeat is sent; less than the hook's heartbeat time-out
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    heartbeat: Duration,
    /// Longest that the relay may take; then the instance is let go all the same
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    at_most: Duration,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let filter = tracing_subscriber::EnvFilter::new("aws_config=error,info");
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(&options)));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// Whether the relay was gone when the instance was let go.
async fn run(options: &Options) -> anyhow::Result<bool> {
    let hook = Hook::find(&options.hook, options.group.clone(), options.poll).await?;
    hook.terminating(options.poll).await;
    let is_gone = tokio::select! {
        gone = tokio::time::timeout(options.at_most, relay::drain(options.admin)) => gone.is_ok(),
        never = hook.beat(options.heartbeat) => match never {},
    };
    if !is_gone {
        tracing::error!(
            "the relay has not ended within {:?}: the instance is let go all the same",
            options.at_most
        );
    }
    hook.complete().await?;
    Ok(is_gone)
}
