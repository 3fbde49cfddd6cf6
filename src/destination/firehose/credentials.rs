//! Credentials as the SDK's chain provides them, with one thing remembered: when the last ones expire. It fetches
//! nothing by itself and caches nothing; the SDK's identity cache sits in front of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};

/// When the credentials seen last expire, in whole seconds since 1970; 0 where they do not expire or none were
/// seen yet.
#[derive(Debug, Default)]
pub(super) struct Expiry(AtomicU64);

impl Expiry {
    pub(super) fn get(&self) -> Option<SystemTime> {
        match self.0.load(Relaxed) {
            0 => None,
            seconds => Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
        }
    }

    fn remember(&self, credentials: &Credentials) {
        let since_1970 = credentials.expiry().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        self.0.store(since_1970.map_or(0, |duration| duration.as_secs()), Relaxed);
    }
}

/// A provider that notes the expiry of what passes through it.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) inner: SharedCredentialsProvider,
    pub(super) expiry: Arc<Expiry>,
}

impl ProvideCredentials for Watched {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async move {
            let credentials = self.inner.provide_credentials().await?;
            self.expiry.remember(&credentials);
            Ok(credentials)
        })
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.inner.fallback_on_interrupt()
    }
}
