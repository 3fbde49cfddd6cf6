//! The lifecycle hook of this instance: what the instance's metadata say of its future, and what Auto Scaling is told.
//!
//! An instance that is to be terminated waits in `Terminating:Wait` until its hook is completed, or until the hook's
//! heartbeat time-out has passed without a heartbeat (Amazon EC2 Auto Scaling User Guide, "Lifecycle hooks").

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context;
use aws_config::imds;
use aws_sdk_autoscaling::error::DisplayErrorContext;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

/// Where the metadata say which state the instance is to come to.
const TARGET_STATE: &str = "/latest/meta-data/autoscaling/target-lifecycle-state";
/// The state of an instance that is to be terminated.
const TERMINATED: &str = "Terminated";
/// How often completing is tried.
const TRIES: u32 = 10;

/// See the module.
#[derive(Debug)]
pub struct Hook {
    metadata: imds::Client,
    autoscaling: aws_sdk_autoscaling::Client,
    instance: String,
    group: String,
    hook: String,
}

impl Hook {
    /// The hook of this name on this instance. It is asked for its group until it is in one.
    ///
    /// # Errors
    /// Where there are no metadata: this is no EC2 instance, or they are switched off.
    pub async fn find(hook: &str, group: Option<String>, poll: Duration) -> anyhow::Result<Self> {
        let metadata = imds::Client::builder().build();
        let instance = metadata.get("/latest/meta-data/instance-id").await;
        let instance =
            instance.context("the instance's metadata (IMDSv2) cannot be read: is this an EC2 instance?")?;
        let instance = String::from(instance);
        let config = aws_config::defaults(aws_config::BehaviorVersion::latest()).load().await;
        let autoscaling = aws_sdk_autoscaling::Client::new(&config);
        let group = match group {
            Some(group) => group,
            None => group_of(&autoscaling, &instance, poll).await,
        };
        info!("instance {instance} of the group {group}: waiting until it is to be terminated (hook {hook})");
        Ok(Self { metadata, autoscaling, instance, group, hook: hook.to_owned() })
    }

    /// Waits until the instance is to be terminated.
    pub async fn terminating(&self, poll: Duration) {
        let mut is_silent = false;
        loop {
            match self.metadata.get(TARGET_STATE).await {
                Ok(state) if state.as_ref().trim() == TERMINATED => return,
                Ok(_) => is_silent = false,
                Err(error) => {
                    // Said once in a row: an instance outside of a group has no such state.
                    if !std::mem::replace(&mut is_silent, true) {
                        warn!(
                            "the metadata do not say which state comes, and are asked again: {}",
                            DisplayErrorContext(&error)
                        );
                    }
                }
            }
            sleep(poll).await;
        }
    }

    /// Keeps the lifecycle action alive, for ever.
    pub async fn beat(&self, every: Duration) -> Infallible {
        let mut beats = interval(every.max(Duration::from_millis(1)));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            let beat = self
                .autoscaling
                .record_lifecycle_action_heartbeat()
                .auto_scaling_group_name(&self.group)
                .lifecycle_hook_name(&self.hook)
                .instance_id(&self.instance);
            if let Err(error) = beat.send().await {
                // In `Terminating` an instance is not in `Terminating:Wait` yet.
                warn!("a heartbeat was not taken: {}", DisplayErrorContext(&error));
            }
        }
    }

    /// Lets the instance go.
    ///
    /// # Errors
    /// Where Auto Scaling does not take it; then the instance goes when the hook's time-out has passed.
    pub async fn complete(&self) -> anyhow::Result<()> {
        let mut tries = 0;
        loop {
            let complete = self
                .autoscaling
                .complete_lifecycle_action()
                .auto_scaling_group_name(&self.group)
                .lifecycle_hook_name(&self.hook)
                .instance_id(&self.instance)
                .lifecycle_action_result("CONTINUE");
            tries += 1;
            match complete.send().await {
                Ok(_) => {
                    info!("the lifecycle action is completed: the instance may go");
                    return Ok(());
                }
                Err(error) if tries < TRIES => {
                    warn!("completing was not taken, and is tried again: {}", DisplayErrorContext(&error));
                    sleep(Duration::from_secs(1)).await;
                }
                Err(error) => return Err(error).context("the lifecycle action cannot be completed"),
            }
        }
    }
}

/// Asks until the instance is in a group: one that starts may not be yet.
async fn group_of(autoscaling: &aws_sdk_autoscaling::Client, instance: &str, poll: Duration) -> String {
    loop {
        match autoscaling.describe_auto_scaling_instances().instance_ids(instance).send().await {
            Ok(found) => match found
                .auto_scaling_instances()
                .iter()
                .find_map(|found| found.auto_scaling_group_name())
            {
                Some(group) => return group.to_owned(),
                None => warn!("instance {instance} is in no Auto Scaling group, which is looked at again"),
            },
            Err(error) => {
                warn!("Auto Scaling cannot be asked for the group: {}", DisplayErrorContext(&error));
            }
        }
        sleep(poll).await;
    }
}
