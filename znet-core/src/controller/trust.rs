//! Decisions about what members believe: where controllers are, and by which keys they are known.

use std::collections::BTreeSet;

use super::command::Reply;
use super::decide::Decision;
use super::network::Network;
use super::rejection::Rejection;
use super::rows::{NetworkConf, Row, StateChange};
use crate::id::Pin;
use crate::map::{ControllerRecord, MAX_CONTROLLERS, MAX_PINS, is_host_and_port};

impl Network {
    pub(super) fn change_controllers(
        &self,
        add: &[String],
        remove: &[String],
        only: bool,
        pins: &[Pin],
    ) -> Result<Decision, Rejection> {
        if let Some(address) = add.iter().find(|address| !is_host_and_port(address)) {
            return Err(Rejection::UnusableController { address: address.chars().take(100).collect() });
        }
        let kept = self.conf().controllers.iter().map(|controller| &controller.address);
        let kept = kept.filter(|address| !only && !remove.contains(address));
        let mut seen = BTreeSet::new();
        let addresses = kept.chain(add).filter(|address| seen.insert(*address));
        let pins: Vec<Pin> = pins.iter().copied().take(MAX_PINS).collect();
        let controllers: Vec<ControllerRecord> = addresses
            .map(|address| ControllerRecord { address: address.clone(), pins: pins.clone() })
            .collect();
        if controllers.len() > MAX_CONTROLLERS {
            return Err(Rejection::Full { what: "controllers", bound: MAX_CONTROLLERS });
        }
        if controllers == self.conf().controllers {
            return Ok(Decision::nothing(Reply::Done));
        }
        let conf = NetworkConf { controllers, ..self.conf().clone() };
        Ok(Decision { changes: vec![StateChange::Put(Row::Network(conf))], reply: Reply::Done })
    }
}
