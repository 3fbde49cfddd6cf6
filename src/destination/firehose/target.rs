//! Where calls go and who they are signed as: one target for every region, role and endpoint that is configured,
//! however many delivery streams share it. All of them share one connector with its connections, and targets of one
//! role its credentials. A call finds its target by the name of its delivery stream, which allocates nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use aws_config::{Region, SdkConfig};
use aws_smithy_runtime_api::client::http::{SharedHttpConnector, http_client_fn};

use super::credentials::{Identity, Role};
use super::signer::Signer;
use super::{FirehoseError, check_endpoint};
use crate::config::{ByDeliveryStream, DeliveryStreamSettings, DeliveryStreams};

/// One way to Firehose.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) signer: Signer,
    pub(super) identity: Arc<Identity>,
}

/// What makes a target another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Way {
    region: Option<String>,
    role: Option<Role>,
    endpoint_url: Option<String>,
}

impl Way {
    fn of(settings: &DeliveryStreamSettings) -> Self {
        let external_id = settings.external_id.clone();
        Self {
            region: settings.region.clone(),
            role: settings.role_arn.clone().map(|arn| Role { arn, external_id }),
            endpoint_url: settings.endpoint_url.clone(),
        }
    }
}

/// What targets are made with: what the SDK's chain has found, and the session name under which roles are assumed.
#[derive(Debug)]
pub(super) struct Maker {
    chain: SdkConfig,
    session: String,
}

impl Maker {
    pub(super) fn new(chain: &SdkConfig, connector: &SharedHttpConnector, session: &str) -> Self {
        let connector = connector.clone();
        // STS is called through the connector of Firehose: one pool, the same proxy, the same time-outs.
        let client = http_client_fn(move |_, _| connector.clone());
        Self { chain: chain.to_builder().http_client(client).build(), session: session.to_owned() }
    }

    async fn target(&self, way: &Way, identity: Arc<Identity>) -> Result<Target, FirehoseError> {
        let region = self.region(way).ok_or(FirehoseError::NoRegion)?;
        let mut config = aws_sdk_firehose::config::Builder::from(&self.chain).region(region);
        if let Some(url) = &way.endpoint_url {
            check_endpoint(url)?;
            config.set_endpoint_url(Some(url.clone()));
        }
        let corrects_clock = !self.chain.disable_clock_skew_correction().unwrap_or(false);
        let signer = Signer::new(&config.build(), Arc::clone(&identity), corrects_clock).await;
        Ok(Target { signer: signer.map_err(FirehoseError::NoRequest)?, identity })
    }

    /// A role is assumed in the region of this process, which it is sure to reach, where it has one.
    async fn identity(&self, way: &Way) -> Identity {
        let Some(role) = way.role.clone() else { return Identity::own(&self.chain) };
        match self.chain.region().filter(|region| !region.as_ref().is_empty()) {
            Some(_) => Identity::assumed(role, &self.chain, &self.session).await,
            None => {
                let chain = self.chain.to_builder().region(self.region(way)).build();
                Identity::assumed(role, &chain, &self.session).await
            }
        }
    }

    fn region(&self, way: &Way) -> Option<Region> {
        let own = way.region.clone().map(Region::new);
        own.or_else(|| self.chain.region().cloned()).filter(|region| !region.as_ref().is_empty())
    }
}

/// All targets, and who they are signed as. Their number is bounded by that of the tables in the configuration.
#[derive(Debug)]
pub(super) struct Targets {
    made: Made,
    tables: ByDeliveryStream<Arc<Target>>,
    /// That of delivery streams without a table.
    others: Arc<Target>,
}

/// What is made once, however many tables want it.
#[derive(Debug, Default)]
struct Made {
    targets: HashMap<Way, Arc<Target>>,
    identities: HashMap<Option<Role>, Arc<Identity>>,
}

impl Targets {
    /// The targets of these tables. Those that were there `before` keep their connections' clock and their credentials.
    pub(super) async fn make(
        maker: &Maker,
        defaults: &DeliveryStreamSettings,
        tables: &DeliveryStreams,
        before: Option<&Targets>,
    ) -> Result<Self, FirehoseError> {
        let mut made = Made::default();
        let before = before.map(|targets| &targets.made);
        let others = made.target(maker, Way::of(defaults), before).await?;
        let mut by_table = ByDeliveryStream::default();
        for (name, settings) in tables.iter() {
            by_table.insert(name.to_owned(), made.target(maker, Way::of(settings), before).await?);
        }
        Ok(Self { made, tables: by_table, others })
    }

    /// The target of the delivery stream of this name.
    pub(super) fn of(&self, delivery_stream: &str) -> &Target {
        self.tables.find(delivery_stream).unwrap_or(&self.others)
    }

    /// A target of each identity.
    pub(super) fn of_each_identity(&self) -> impl Iterator<Item = &Target> {
        let is_of =
            |identity| self.made.targets.values().find(|target| Arc::ptr_eq(&target.identity, identity));
        self.made.identities.values().filter_map(is_of).map(Arc::as_ref)
    }

    /// The first moment at which credentials expire that are in use; `None` where none do.
    pub(super) fn expiry(&self, now: SystemTime) -> Option<SystemTime> {
        self.made.identities.values().filter_map(|identity| identity.expiry(now)).min()
    }
}

impl Made {
    async fn target(
        &mut self,
        maker: &Maker,
        way: Way,
        before: Option<&Made>,
    ) -> Result<Arc<Target>, FirehoseError> {
        if let Some(target) = self.targets.get(&way) {
            return Ok(Arc::clone(target));
        }
        let target = match before.and_then(|made| made.targets.get(&way)) {
            Some(target) => Arc::clone(target),
            None => {
                let identity = self.identity(maker, &way, before).await;
                Arc::new(maker.target(&way, identity).await?)
            }
        };
        self.identities.insert(way.role.clone(), Arc::clone(&target.identity));
        self.targets.insert(way, Arc::clone(&target));
        Ok(target)
    }

    async fn identity(&self, maker: &Maker, way: &Way, before: Option<&Made>) -> Arc<Identity> {
        let known =
            [Some(self), before].into_iter().flatten().find_map(|made| made.identities.get(&way.role));
        match known {
            Some(identity) => Arc::clone(identity),
            None => Arc::new(maker.identity(way).await),
        }
    }
}
