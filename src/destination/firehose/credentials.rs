//! Who calls are signed as: the identity that the SDK's chain finds for this process, or a role that it assumes. The
//! SDK's cache fetches credentials anew before they expire; one thing is remembered of them, when that is. Nothing
//! is fetched or cached by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_firehose::config::{
    ConfigBag, IdentityCache, ResolveCachedIdentity as _, RuntimeComponents, SharedIdentityCache,
};
use aws_smithy_runtime_api::client::identity::SharedIdentityResolver;

/// A role to assume, and what its trust policy may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Role {
    pub(super) arn: String,
    pub(super) external_id: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Identity {
    /// The role that is assumed; `None`: it is the process's own.
    role: Option<Role>,
    provider: Option<SharedIdentityResolver>,
    cache: SharedIdentityCache,
    expiry: Arc<Expiry>,
}

impl Identity {
    /// What the chain finds for this process.
    pub(super) fn own(chain: &SdkConfig) -> Self {
        Self::new(None, chain.credentials_provider())
    }

    /// A role that the process's own identity assumes, under this session name.
    pub(super) async fn assumed(role: Role, chain: &SdkConfig, session: &str) -> Self {
        let mut builder = AssumeRoleProvider::builder(&role.arn).configure(chain).session_name(session);
        if let Some(id) = &role.external_id {
            builder = builder.external_id(id);
        }
        let provider = SharedCredentialsProvider::new(builder.build().await);
        Self::new(Some(role), Some(provider))
    }

    fn new(role: Option<Role>, provider: Option<SharedCredentialsProvider>) -> Self {
        let expiry = Arc::new(Expiry::default());
        let watch = |inner| {
            SharedIdentityResolver::new(SharedCredentialsProvider::new(Watched {
                inner,
                expiry: Arc::clone(&expiry),
            }))
        };
        let provider = provider.map(watch);
        Self { role, provider, cache: IdentityCache::lazy().build(), expiry }
    }

    /// Credentials that are good now.
    ///
    /// # Errors
    /// Where there are none, with what the SDK says.
    pub(super) async fn credentials(&self, components: &RuntimeComponents) -> Result<Credentials, String> {
        let provider = self.provider.clone().ok_or("no provider of credentials is known")?;
        let bag = ConfigBag::base();
        let identity = self.cache.resolve_cached_identity(provider, components, &bag).await;
        let identity = identity.map_err(|error| super::chain(&*error))?;
        let credentials = identity.data::<Credentials>().ok_or("the provider gives no AWS credentials")?;
        Ok(credentials.clone())
    }

    /// When the credentials used last expire; see [`Expiry::get`].
    pub(super) fn expiry(&self, now: SystemTime) -> Option<SystemTime> {
        self.expiry.get(now)
    }

    /// What to do where there are no credentials, for the reason `problem`.
    pub(super) fn remedy(&self, problem: &str) -> String {
        match &self.role {
            None => format!(
                "there are no AWS credentials ({problem}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, \
                 or give the host a role"
            ),
            Some(Role { arn, .. }) => format!(
                "the role {arn} cannot be assumed ({problem}): check that its trust policy names the identity of this \
                 host, and the external id where it asks for one, and that this identity may do sts:AssumeRole"
            ),
        }
    }
}

/// When the credentials seen last expire.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    /// In whole seconds since 1970; 0 where they do not expire or none were seen yet.
    at: AtomicU64,
    /// New ones were asked for and have not come.
    is_missed: AtomicBool,
}

impl Expiry {
    /// Credentials that have expired since nobody needed new ones do not count: those of a role whose delivery
    /// streams get no events are not renewed.
    fn get(&self, now: SystemTime) -> Option<SystemTime> {
        let at = match self.at.load(Relaxed) {
            0 => return None,
            seconds => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        };
        Some(at).filter(|at| *at > now || self.is_missed.load(Relaxed))
    }

    fn remember(&self, credentials: &Credentials) {
        let since_1970 = credentials.expiry().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        self.at.store(since_1970.map_or(0, |duration| duration.as_secs()), Relaxed);
        self.is_missed.store(false, Relaxed);
    }
}

/// A provider that notes the expiry of what passes through it.
#[derive(Debug)]
struct Watched {
    inner: SharedCredentialsProvider,
    expiry: Arc<Expiry>,
}

impl ProvideCredentials for Watched {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async move {
            // Who waits for them may give up before they come.
            self.expiry.is_missed.store(true, Relaxed);
            let credentials = self.inner.provide_credentials().await?;
            self.expiry.remember(&credentials);
            Ok(credentials)
        })
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.inner.fallback_on_interrupt()
    }
}
