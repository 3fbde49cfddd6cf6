//! Calls to several regions, endpoints and accounts.

use super::*;
use crate::config::ByDeliveryStream;

const ROLE: &str = "arn:aws:iam::210987654321:role/standpipe-delivery";

/// What STS answers to AssumeRole, with credentials that are good until then.
fn assumed(expiration: &str) -> Reply {
    Reply::Answer(
        200,
        format!(
            "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult>\
             <AssumedRoleUser><Arn>arn:aws:sts::210987654321:assumed-role/standpipe-delivery/standpipe-test</Arn>\
             <AssumedRoleId>AROATEST:standpipe-test</AssumedRoleId></AssumedRoleUser>\
             <Credentials><AccessKeyId>ASIAASSUMED</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>\
             <SessionToken>assumed-token</SessionToken><Expiration>{expiration}</Expiration></Credentials>\
             </AssumeRoleResult></AssumeRoleResponse>"
        ),
    )
}

fn refused() -> Reply {
    Reply::Answer(
        403,
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
         <Code>AccessDenied</Code><Message>not authorized to perform: sts:AssumeRole</Message></Error></ErrorResponse>"
            .into(),
    )
}

fn tables<const N: usize>(tables: [(&str, DeliveryStreamSettings); N]) -> DeliveryStreams {
    let mut by_name = ByDeliveryStream::default();
    tables.into_iter().for_each(|(name, settings)| by_name.insert(name.to_owned(), settings));
    by_name
}

/// A client whose own identity is `AKIDTEST` in eu-west-1, and whose STS is this server.
async fn firehose_beside(sts: &Server, settings: &FirehoseSettings) -> Firehose {
    let chain = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(Credentials::new("AKIDTEST", "secret", None, None, "test"))
        .endpoint_url(sts.url());
    Firehose::from_config(&chain.load().await, settings, connector(settings))
        .await
        .expect("the settings are good")
}

/// Who signed each request, and for which region.
fn signers(server: &Server) -> Vec<(String, String)> {
    let signer = |request: &Request| {
        let credential = request.headers["authorization"].split_once("Credential=").expect("it is signed").1;
        let parts: Vec<&str> = credential.split('/').collect();
        (parts[0].to_owned(), parts[2].to_owned())
    };
    server.requests().iter().map(signer).collect()
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs.map(|(one, other)| (one.to_owned(), other.to_owned())).into()
}

#[tokio::test]
async fn a_delivery_stream_is_called_where_and_as_whom_its_table_says() {
    let accepts = || Server::start(Reply::Answer(200, answer_of(0, &[OK])));
    let (here, there, sts) =
        (accepts().await, accepts().await, Server::start(assumed("2100-01-01T00:00:00Z")).await);
    let region = |name: &str| Some(name.to_owned());
    let role = DeliveryStreamSettings {
        role_arn: Some(ROLE.into()),
        external_id: Some("an-id".into()),
        ..at(&there.url())
    };
    let settings = FirehoseSettings {
        delivery_streams: tables([
            ("us-{stream}", DeliveryStreamSettings { region: region("us-east-1"), ..at(&there.url()) }),
            ("theirs", role.clone()),
            ("theirs-us", DeliveryStreamSettings { region: region("us-east-1"), ..role }),
        ]),
        session_name: "standpipe-test".into(),
        ..settings(&here.url())
    };
    let firehose = firehose_beside(&sts, &settings).await;
    for name in ["clicks", "us-clicks", "theirs", "theirs-us", "theirs"] {
        assert_eq!(firehose.call(call_to(name, 1)).await, Outcome::Accepted, "{name}");
    }
    assert_eq!(signers(&here), pairs([("AKIDTEST", "eu-west-1")]));
    let assumed = ("ASIAASSUMED", "eu-west-1");
    assert_eq!(
        signers(&there),
        pairs([("AKIDTEST", "us-east-1"), assumed, ("ASIAASSUMED", "us-east-1"), assumed])
    );
    for request in &there.requests()[1..] {
        assert_eq!(request.headers["x-amz-security-token"], "assumed-token");
        assert_eq!(
            request.headers["authorization"].rsplit_once("Signature=").expect("it is signed").1,
            signature(request)
        );
    }
    assert_eq!(
        signers(&sts),
        pairs([("AKIDTEST", "eu-west-1")]),
        "one role is assumed once, in our own region"
    );
    let asked = String::from_utf8(sts.requests()[0].body.clone()).expect("it is a form");
    for part in [
        "Action=AssumeRole",
        "role%2Fstandpipe-delivery",
        "RoleSessionName=standpipe-test",
        "ExternalId=an-id",
    ] {
        assert!(asked.contains(part), "{part}: {asked}");
    }
}

#[tokio::test]
async fn a_role_that_cannot_be_assumed_stops_its_own_delivery_streams_alone() {
    let server = Server::start(Reply::Answer(200, answer_of(0, &[OK]))).await;
    let sts = Server::start(refused()).await;
    let role = DeliveryStreamSettings { role_arn: Some(ROLE.into()), ..at(&server.url()) };
    let settings =
        FirehoseSettings { delivery_streams: tables([("theirs", role)]), ..settings(&server.url()) };
    let firehose = firehose_beside(&sts, &settings).await;
    firehose.check_credentials().await;
    let outcome = firehose.call(call_to("theirs", 1)).await;
    assert_eq!(refusal(&outcome), Some(Refusal::Credentials), "{outcome:?}");
    for part in ["theirs", ROLE, "AccessDenied", "trust policy", "external id"] {
        assert!(message(&outcome).contains(part), "{part}: {outcome:?}");
    }
    assert_eq!(firehose.call(call(1)).await, Outcome::Accepted);
    assert_eq!(signers(&server), pairs([("AKIDTEST", "eu-west-1")]));
}

/// A role whose delivery streams get no events is not assumed again: what it had says nothing.
#[tokio::test]
async fn the_first_credentials_to_expire_count_unless_nobody_needs_them() {
    let server = Server::start(Reply::Answer(200, answer_of(0, &[OK]))).await;
    let role = |arn: &str| DeliveryStreamSettings { role_arn: Some(arn.into()), ..at(&server.url()) };
    let settings =
        FirehoseSettings { delivery_streams: tables([("theirs", role(ROLE))]), ..settings(&server.url()) };
    for (expiration, known) in [("2100-01-01T00:00:00Z", Some(4_102_444_800)), ("2020-01-01T00:00:00Z", None)]
    {
        let sts = Server::start(assumed(expiration)).await;
        let firehose = firehose_beside(&sts, &settings).await;
        assert_eq!(firehose.call(call(1)).await, Outcome::Accepted);
        assert_eq!(firehose.credentials_expiry(), None, "ours do not expire");
        assert_eq!(firehose.call(call_to("theirs", 1)).await, Outcome::Accepted);
        let known = known.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(firehose.credentials_expiry(), known, "{expiration}");
    }
}

#[tokio::test]
async fn new_tables_move_calls_and_keep_the_credentials_of_what_stays() {
    let accepts = || Server::start(Reply::Answer(200, answer_of(0, &[OK])));
    let (here, there, sts) =
        (accepts().await, accepts().await, Server::start(assumed("2100-01-01T00:00:00Z")).await);
    let role = |server: &Server| DeliveryStreamSettings { role_arn: Some(ROLE.into()), ..at(&server.url()) };
    let settings =
        FirehoseSettings { delivery_streams: tables([("theirs", role(&here))]), ..settings(&here.url()) };
    let firehose = firehose_beside(&sts, &settings).await;
    assert_eq!(firehose.call(call_to("theirs", 1)).await, Outcome::Accepted);
    firehose
        .retarget(&settings.defaults, &tables([("{stream}", role(&there))]))
        .await
        .expect("they are good");
    assert_eq!(firehose.call(call_to("theirs", 1)).await, Outcome::Accepted);
    assert_eq!((here.requests().len(), there.requests().len(), sts.requests().len()), (1, 1, 1));
    let bad = firehose.retarget(&at("ftp://x"), &DeliveryStreams::default()).await;
    assert!(bad.expect_err("it is no endpoint").to_string().contains("ftp://x"));
    assert_eq!(firehose.call(call_to("theirs", 1)).await, Outcome::Accepted);
    assert_eq!(there.requests().len(), 2, "what cannot be used changes nothing");
}
