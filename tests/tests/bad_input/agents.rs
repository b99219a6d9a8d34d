//! The agents' door. The protocol's own file says what calls there are, so that a new one is asked as well.

use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use znet_api::agent_client::tls_stream;
use znet_api::error::CODE_KEY;
use znet_api::rest::CreateToken;
use znet_api::tls::{Identity, client_config};
use znet_api::token::JoinToken;
use znet_api::v1;
use znet_tests::{FleetNode, Result, Served};

const PROTOCOL: &str = include_str!("../../../znet-api/proto/znet/v1/znet.proto");
/// Largest message in bytes that the controller takes.
const MAX_MESSAGE: usize = 64 << 10;
/// Bytes of memory that may be held more after everything was sent many times.
const MEMORY: u64 = 16 << 20;

/// What a call comes to.
type Answered<T> = std::result::Result<T, Status>;

/// The paths of all calls.
fn calls() -> Vec<String> {
    let words = PROTOCOL.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
    let calls: Vec<String> =
        words.map(|call| format!("/znet.v1.Controller/{}", call.split('(').next().unwrap())).collect();
    assert!(calls.len() >= 7, "{calls:?}");
    calls
}

/// Bytes out, bytes in: what no generated client would send.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Answered<()> {
        bytes::BufMut::put(out, item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Answered<Option<Bytes>> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// A connection as a node, or as nobody.
async fn channel(served: &Served, node: Option<&Identity>) -> Result<Channel> {
    let tls = Arc::new(client_config(&[served.pin], node, &["h2"])?);
    let (address, pin) = (served.address.to_string(), served.pin);
    let connector = tower::service_fn(move |_: http::Uri| {
        let (tls, address) = (tls.clone(), address.clone());
        async move { tls_stream(&address, tls, Some(pin)).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://controller").connect_with_connector(connector).await?)
}

/// Sends one message and returns how the call ended: by the answer, or by the first thing on its stream.
async fn call(channel: &Channel, path: &str, message: &[u8]) -> Answered<Bytes> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let message = tokio_stream::once(Bytes::copy_from_slice(message));
    let path = path.parse().unwrap();
    let mut events = client.streaming(tonic::Request::new(message), path, Raw).await?.into_inner();
    events.next().await.unwrap_or_else(|| Err(Status::ok("nothing was said")))
}

fn code(status: &Status) -> (Code, &str) {
    let code = status.metadata().get(CODE_KEY).and_then(|code| code.to_str().ok());
    (status.code(), code.unwrap_or("none"))
}

/// A request of any call for a network: all have it in their first field, but for the stream's, which has it within.
fn about(path: &str, network: &[u8]) -> Vec<u8> {
    let name = "n1".to_owned();
    match path.rsplit('/').next().unwrap() {
        "Watch" => {
            let resume = v1::Resume { network: network.to_vec(), ..v1::Resume::default() };
            v1::WatchRequest { say: Some(v1::watch_request::Say::Resume(resume)) }.encode_to_vec()
        }
        "Join" => {
            v1::JoinRequest { network: network.to_vec(), name, ..v1::JoinRequest::default() }.encode_to_vec()
        }
        "Attach" => v1::AttachRequest { network: network.to_vec(), name, ..v1::AttachRequest::default() }
            .encode_to_vec(),
        "Detach" => v1::DetachRequest { network: network.to_vec(), name }.encode_to_vec(),
        _ => v1::LeaveRequest { network: network.to_vec() }.encode_to_vec(),
    }
}

/// Joins a network as this node.
async fn join(served: &Served, node: &Identity, token: &JoinToken) -> Result {
    let request = v1::JoinRequest {
        network: token.network.as_bytes().to_vec(),
        secret: token.secret.to_bytes().to_vec(),
        name: "n1".to_owned(),
        ..v1::JoinRequest::default()
    };
    let channel = channel(served, Some(node)).await?;
    call(&channel, "/znet.v1.Controller/Join", &request.encode_to_vec()).await?;
    Ok(())
}

#[tokio::test]
async fn every_call_of_a_node_that_is_no_member_is_refused() -> Result {
    let mut served = Served::start()?;
    let (acme, other) = (served.network("acme").await?, served.network("other").await?);
    let (unknown, removed, foreign) = (Identity::generate()?, Identity::generate()?, Identity::generate()?);
    join(&served, &removed, &acme).await?;
    served.client().remove_node("acme", &removed.node_id()?.to_string()).await?;
    join(&served, &foreign, &other).await?;
    let before = served.client().network("acme").await?;
    let nobody = channel(&served, None).await?;
    for path in calls() {
        let asked = about(&path, acme.network.as_bytes());
        for node in [&unknown, &removed, &foreign] {
            let refused = call(&channel(&served, Some(node)).await?, &path, &asked).await.unwrap_err();
            assert_eq!(code(&refused), (Code::NotFound, "unknown_node"), "{path}: {refused:?}");
        }
        let refused = call(&nobody, &path, &asked).await.unwrap_err();
        assert_eq!(code(&refused), (Code::Unauthenticated, "no_certificate"), "{path}: {refused:?}");
        let node = channel(&served, Some(&foreign)).await?;
        let refused = call(&node, &path, &about(&path, &[7; 16])).await.unwrap_err();
        assert_eq!(code(&refused), (Code::NotFound, "unknown_network"), "{path}: {refused:?}");
        for network in [&[][..], &[7; 3], &[7; 17], &[7; 4_096]] {
            let refused = call(&node, &path, &about(&path, network)).await.unwrap_err();
            assert_eq!(code(&refused), (Code::InvalidArgument, "invalid_argument"), "{path}: {refused:?}");
        }
    }
    assert_eq!(served.client().network("acme").await?, before);
    served.is_unharmed().await
}

#[tokio::test]
async fn every_call_says_what_is_wrong_with_a_message_and_keeps_nothing_of_it() -> Result {
    let mut served = Served::start()?;
    let acme = served.network("acme").await?;
    let node = Identity::generate()?;
    join(&served, &node, &acme).await?;
    let network = acme.network.as_bytes();
    let malformed: [Vec<u8>; 6] = [
        vec![0xff; 12],
        vec![0x0a, 0x7f, 1],
        vec![0x08; 3],
        // A field of bytes that is longer than there can be, and a group within a group that never ends.
        vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
        vec![0x0b; 4_096],
        // A name that is no UTF-8, where a call has its name.
        [vec![0x0a, 16], network.to_vec(), vec![0x12, 2, 0xff, 0xfe, 0x1a, 2, 0xff, 0xfe]].concat(),
    ];
    let channel = channel(&served, Some(&node)).await?;
    let mut warm = 0;
    for round in 0..40 {
        for path in calls().iter().filter(|path| !path.ends_with("/Leave")) {
            for message in &malformed {
                let refused = call(&channel, path, message).await;
                let Err(refused) = refused else {
                    // A call without a name has no place for one that is no text.
                    assert!(path.ends_with("/WaitApplied") && message.len() > 20, "{path} took {message:?}");
                    continue;
                };
                let expected = (Code::InvalidArgument, "invalid_argument");
                assert_eq!(code(&refused), expected, "{path} {message:.40?}: {refused:?}");
            }
            let refused = call(&channel, path, &vec![0; MAX_MESSAGE + 1]).await.unwrap_err();
            assert_eq!(code(&refused), (Code::OutOfRange, "too_large"), "{path}: {refused:?}");
        }
        if round == 20 {
            warm = served.memory()?;
        }
    }
    let after = served.memory()?;
    assert!(after < warm + MEMORY, "{warm} bytes of memory after half of it, {after} after all");
    let refused = call(&channel, "/znet.v1.Controller/Nothing", b"").await.unwrap_err();
    assert_eq!(code(&refused), (Code::Unimplemented, "unknown_call"));
    // The node is a member as before, and its connection is as good.
    let waited = v1::WaitAppliedRequest { network: network.to_vec(), revision: 1 };
    call(&channel, "/znet.v1.Controller/WaitApplied", &waited.encode_to_vec()).await?;
    served.is_unharmed().await
}

#[tokio::test]
async fn what_a_member_asks_for_beyond_reason_is_refused_with_its_reason() -> Result {
    let mut served = Served::start()?;
    let acme = served.network("acme").await?;
    let node = Identity::generate()?;
    join(&served, &node, &acme).await?;
    let channel = channel(&served, Some(&node)).await?;
    let network = acme.network.as_bytes().to_vec();
    let attach = |name: &str, addresses: &[&str], public_key: &[u8]| {
        let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
        let (network, public_key) = (network.clone(), public_key.to_vec());
        v1::AttachRequest { network, name: name.to_owned(), addresses, public_key, port: None }
            .encode_to_vec()
    };
    let report =
        |endpoints: Vec<String>| v1::ReportRequest { network: network.clone(), endpoints }.encode_to_vec();
    let many = |endpoint: &str, count: usize| vec![endpoint.to_owned(); count];
    let before = served.client().network("acme").await?;
    for (call_of, message, expected) in [
        ("Attach", attach("", &[], &[]), "invalid_argument"),
        ("Attach", attach("No", &[], &[]), "invalid_argument"),
        ("Attach", attach(&"x".repeat(60_000), &[], &[]), "invalid_argument"),
        ("Attach", attach("c", &["x"], &[]), "invalid_argument"),
        ("Attach", attach("c", &["8.8.8.8"], &[]), "outside_prefix"),
        ("Attach", attach("c", &["10.64.0.9", "10.64.0.10"], &[]), "too_many_addresses"),
        ("Attach", attach("c", &[], &[1; 31]), "invalid_argument"),
        ("Attach", attach("c", &[], &[0; 32]), "unusable_key"),
        ("Report", report(many("x", 1)), "invalid_argument"),
        ("Report", report(many("[ff02::1]:1", 1)), "unusable_endpoint"),
        ("Report", report(many("192.0.2.1:0", 1)), "unusable_endpoint"),
        ("Report", report(many("192.0.2.1:1", 3_000)), "invalid_argument"),
    ] {
        let refused = call(&channel, &format!("/znet.v1.Controller/{call_of}"), &message).await.unwrap_err();
        let said = code(&refused);
        assert!(said.1 == expected && said.0 != Code::Internal, "{call_of} {expected}: {refused:?}");
    }
    assert_eq!(served.client().network("acme").await?, before);
    // A token that was used up, revoked or is of another network admits nobody.
    let once = CreateToken { uses: Some(1), ..CreateToken::default() };
    let once: JoinToken = served.client().create_token("acme", &once).await?.join_token.parse()?;
    FleetNode::join(&once, "once", 0).await?;
    let revoked = served.client().create_token("acme", &CreateToken::default()).await?;
    served.client().revoke_token("acme", &revoked.token.id).await?;
    let other = served.network("other").await?;
    let mixed = JoinToken { network: acme.network, ..other };
    let revoked: JoinToken = revoked.join_token.parse()?;
    for (token, expected) in [(once, "used_up_token"), (revoked, "revoked_token"), (mixed, "unknown_token")] {
        let error = join(&served, &Identity::generate()?, &token).await.unwrap_err();
        let refused = error.downcast_ref::<Status>().unwrap();
        assert_eq!(code(refused), (Code::PermissionDenied, expected), "{refused:?}");
    }
    served.is_unharmed().await
}
