//! A gRPC codec for events that are encoded already.

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use znet_api::v1;

/// Sends bytes as they are, and reads what an agent says on its stream.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EventCodec;

impl Codec for EventCodec {
    type Encode = Bytes;
    type Decode = v1::WatchRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for EventCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, event: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(event);
        Ok(())
    }
}

impl Decoder for EventCodec {
    type Item = v1::WatchRequest;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<v1::WatchRequest>, Status> {
        let whole = bytes.remaining();
        let message = v1::WatchRequest::decode(bytes.take(whole));
        message.map(Some).map_err(|error| Status::invalid_argument(error.to_string()))
    }
}
