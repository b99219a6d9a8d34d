//! An underlay and a port that are queues: what a network sends and delivers is there to be looked at.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Mutex;

use znet_wg::net::{Outbox, Port, Underlay};
use znet_wg::offload::{Offloads, VNET_LEN};

/// What a node sent and what it handed to its container.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) datagrams: Mutex<VecDeque<(SocketAddr, Vec<u8>)>>,
    pub(crate) delivered: Mutex<Vec<Vec<u8>>>,
}

impl Underlay for Queue {
    fn send(&self, outbox: &Outbox) {
        let sent = outbox.datagrams().map(|(to, datagram)| (to, datagram.to_vec()));
        self.datagrams.lock().unwrap().extend(sent);
    }
}

impl Port for Queue {
    fn deliver(&self, slices: &[IoSlice<'_>]) -> bool {
        assert_eq!(slices[0].len(), VNET_LEN);
        self.delivered.lock().unwrap().push(slices[1..].iter().flat_map(|slice| slice.to_vec()).collect());
        true
    }

    fn offloads(&self) -> Offloads {
        Offloads::default()
    }
}
