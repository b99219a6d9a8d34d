//! The wire of znet: what agents, controllers and tooling say to each other, and nothing of what they decide.
//!
//! Wire types never enter the core: [`convert`] turns them into core types and refuses what is not well formed.
//!
//! | module | holds |
//! | --- | --- |
//! | [`v1`] | the generated gRPC protocol of the agents |
//! | [`convert`] | strict conversions between `v1` and the core |
//! | [`error`] | machine-readable codes of errors, on gRPC and REST |
//! | [`token`] | the text of a join token and of an operator's token |
//! | [`tls`] | identities, pins, TLS 1.3 configurations |
//! | [`agent_client`] | an agent's connection to its controller |
//! | [`rest`] | the types of the operators' REST API |
//! | [`client`] | a client of the REST API |
//! | [`manifest`] | the file that `znet-ctl apply` reads |

pub mod agent_client;
pub mod client;
pub mod convert;
pub mod error;
pub mod manifest;
pub mod rest;
pub mod tls;
pub mod token;

/// The generated gRPC protocol of the agents; its description, `proto/znet/v1/znet.proto`, documents it.
pub mod v1 {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::unwrap_used,
        clippy::redundant_clone
    )]
    tonic::include_proto!("znet.v1");
}
