//! With what calls are signed, and for which time. The [`Identity`] is asked for credentials once a second. The time is
//! this host's, corrected by how far the service's clock was ahead at its last answer, as the SDK does it.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_sdk_firehose::config::{Config, RuntimeComponents};
use aws_smithy_runtime_api::http::Headers;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use super::credentials::Identity;
use super::request::{Stamp, Template};

/// An answer that took longer says nothing about the service's clock.
const TRUSTED_MAX: Duration = Duration::from_secs(15 * 60);

/// See the module.
#[derive(Debug)]
pub(super) struct Signer {
    template: Template,
    identity: Arc<Identity>,
    components: RuntimeComponents,
    stamp: Mutex<Option<Arc<Stamp>>>,
    clock: Clock,
}

impl Signer {
    /// A signer of requests as the SDK makes them with `config`.
    ///
    /// # Errors
    /// Where the SDK cannot make a request, with what it says.
    pub(super) async fn new(
        config: &Config,
        identity: Arc<Identity>,
        corrects_clock: bool,
    ) -> Result<Self, String> {
        let (template, components) = Template::learn(config).await?;
        Ok(Self {
            template,
            identity,
            components,
            stamp: Mutex::default(),
            clock: Clock { ahead: AtomicI64::new(0), corrects: corrects_clock },
        })
    }

    /// What requests are signed with now.
    ///
    /// # Errors
    /// Where there are no credentials, with the reason.
    pub(super) async fn stamp(&self) -> Result<Arc<Stamp>, String> {
        let now = self.clock.now();
        let last = self.stamp.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(stamp) = last.filter(|stamp| stamp.is_of(now)) {
            return Ok(stamp);
        }
        let credentials = self.identity.credentials(&self.components).await?;
        let stamp = Arc::new(self.template.stamp(now, &credentials));
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&stamp));
        Ok(stamp)
    }

    /// Learns the time of the service from an answer to what was sent at `sent`.
    pub(super) fn learn(&self, answer: &Headers, sent: SystemTime) {
        self.clock.learn(answer, sent, SystemTime::now());
    }
}

/// This host's clock, corrected.
#[derive(Debug)]
struct Clock {
    /// How far the service's clock is ahead, in milliseconds.
    ahead: AtomicI64,
    corrects: bool,
}

impl Clock {
    fn now(&self) -> SystemTime {
        let ahead = self.ahead.load(Relaxed);
        let by = Duration::from_millis(ahead.unsigned_abs());
        let now = SystemTime::now();
        if ahead < 0 { now.checked_sub(by) } else { now.checked_add(by) }.unwrap_or(now)
    }

    /// The service is taken to have read its clock halfway (`ServiceClockSkewInterceptor` of aws-runtime). What came
    /// out of a cache is of another time.
    fn learn(&self, answer: &Headers, sent: SystemTime, received: SystemTime) {
        let took = received.duration_since(sent).unwrap_or_default();
        if !self.corrects || answer.contains_key("age") || took > TRUSTED_MAX {
            return;
        }
        let date = answer.get("date").and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        let Some(theirs) = date.and_then(|date| SystemTime::try_from(date).ok()) else { return };
        let ours = sent + took / 2;
        let millis = |ahead: Duration| i64::try_from(ahead.as_millis()).unwrap_or(i64::MAX);
        let ahead = theirs.duration_since(ours).map_or_else(|error| -millis(error.duration()), millis);
        self.ahead.store(ahead, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(fields: &[(&'static str, &'static str)]) -> Headers {
        let mut headers = Headers::new();
        fields.iter().for_each(|(name, value)| {
            headers.insert(*name, *value);
        });
        headers
    }

    #[test]
    fn the_clock_follows_the_service_both_ways_and_trusts_no_cache() {
        let clock = Clock { ahead: AtomicI64::new(0), corrects: true };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let date = "Thu, 01 Jan 1970 01:00:00 GMT";
        clock.learn(&answer(&[("date", date), ("age", "1")]), at(0), at(0));
        clock.learn(&answer(&[("date", "yesterday")]), at(0), at(0));
        clock.learn(&answer(&[("date", date)]), at(0), at(3_600));
        assert_eq!(clock.ahead.load(Relaxed), 0);
        clock.learn(&answer(&[("date", date)]), at(590), at(610));
        assert_eq!(clock.ahead.load(Relaxed), 3_000_000);
        clock.learn(&answer(&[("date", date)]), at(3_690), at(3_710));
        assert_eq!(clock.ahead.load(Relaxed), -100_000);
        let silent = Clock { ahead: AtomicI64::new(0), corrects: false };
        silent.learn(&answer(&[("date", date)]), at(0), at(0));
        assert_eq!(silent.ahead.load(Relaxed), 0);
    }
}
