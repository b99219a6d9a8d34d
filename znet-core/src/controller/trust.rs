//! Decisions about what members believe: where controllers are, and by which keys they are known.

use std::collections::BTreeSet;

use super::command::Reply;
use super::decide::Decision;
use super::network::Network;
use super::rejection::Rejection;
use super::rows::{NetworkConf, Row, Signing, StateChange, Succeeded};
use crate::id::Pin;
use crate::map::{ControllerRecord, MAX_CONTROLLERS, MAX_LINE, MAX_PINS, Succession, is_host_and_port};

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
        Ok(decided(NetworkConf { controllers, ..self.conf().clone() }))
    }

    pub(super) fn rotate_key(&self, statement: &Succession) -> Result<Decision, Rejection> {
        let before = self.conf().signing.as_ref();
        let line = before.map(|signing| signing.line.clone()).unwrap_or_default();
        let current = before.map_or(statement.from, |signing| signing.key);
        // A key that was given up once does not come back: nobody would follow the line to it.
        let returns = line.iter().any(|step| step.statement.from == statement.to) || current == statement.to;
        let ours = statement.network == self.conf().id && statement.from == current && statement.verifies();
        if !ours || returns {
            return Err(Rejection::StaleKey);
        }
        if line.len() >= MAX_LINE {
            return Err(Rejection::LongLine);
        }
        let since = self.revision().next();
        let line = line.into_iter().chain([Succeeded { statement: *statement, since }]).collect();
        let signing = Some(Box::new(Signing { key: statement.to, since, line }));
        Ok(decided(NetworkConf { signing, ..self.conf().clone() }))
    }

    pub(super) fn retire_keys(&self) -> Decision {
        match &self.conf().signing {
            Some(signing) if !signing.line.is_empty() => {
                let signing = Some(Box::new(Signing { line: Vec::new(), ..(**signing).clone() }));
                decided(NetworkConf { signing, ..self.conf().clone() })
            }
            _ => Decision::nothing(Reply::Done),
        }
    }
}

fn decided(conf: NetworkConf) -> Decision {
    Decision { changes: vec![StateChange::Put(Row::Network(conf))], reply: Reply::Done }
}
