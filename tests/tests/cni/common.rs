//! A world with nodes on which the plugin can be called.

use std::time::Duration;

use anyhow::Context as _;
use netns_harness::{Container, probe};
use serde_json::{Value, json};
use znet_tests::runtime::Runtimes;
use znet_tests::{FIRST_PACKET, NetworkSpec, Node, Result, World};

/// How long what an agent does by itself may take.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A node on whose host runtimes can be run.
pub(crate) struct Place {
    pub(crate) runtimes: Runtimes,
    pub(crate) node: Node,
}

/// What the plugin said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) json: Value,
    pub(crate) text: String,
}

impl Said {
    /// The error's number by the specification; 0 when it went well.
    pub(crate) fn error(&self) -> u64 {
        match self.code {
            0 => 0,
            _ => self.json["code"].as_u64().unwrap_or_else(|| panic!("an error without a code: {self:?}")),
        }
    }

    #[track_caller]
    pub(crate) fn refuses(&self, code: u64, words: &[&str]) {
        assert_eq!(self.error(), code, "{self:?}");
        for word in words {
            assert!(self.text.contains(word), "it does not say {word:?}: {self:?}");
        }
    }

    #[track_caller]
    pub(crate) fn well(self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        self.json
    }
}

/// A world with the network `acme`.
pub(crate) fn acme(purpose: &str) -> Result<(World, String)> {
    let world = World::new(purpose)?;
    let spec = NetworkSpec { name: "acme", prefixes: &["10.77.0.0/16"], rest: None };
    let token = world.controller.create_network(&spec)?;
    Ok((world, token))
}

pub(crate) fn place(world: &mut World, name: &str, tokens: &[&str]) -> Result<Place> {
    let node = world.node(name, tokens)?;
    let runtimes = Runtimes::prepare(&world.lab, node.host())?;
    Ok(Place { runtimes, node })
}

/// The names of the containers that the controller knows.
pub(crate) fn containers(world: &World) -> Result<Vec<String>> {
    let all = world.controller.json(&["container", "list", "acme"])?;
    Ok(all.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect())
}

/// A configuration of the CNI network `znet` for containers of `acme`.
pub(crate) fn conf(more: Value) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "znet", "type": "znet-cni", "network": "acme"});
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    conf
}

impl Place {
    pub(crate) fn container(&self, name: &str) -> Result<Container> {
        Ok(self.node.host().container(name)?)
    }

    /// Calls the plugin with whatever environment and input.
    pub(crate) fn raw(&self, environment: &[(&str, &str)], input: impl AsRef<[u8]>) -> Result<Said> {
        let output = self.runtimes.plugin(environment, input)?.try_run()?;
        assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
        let json = match output.stdout.is_empty() {
            true => Value::Null,
            false => serde_json::from_str(&output.stdout)?,
        };
        Ok(Said { code: output.status.code().unwrap_or(-1), json, text: output.stdout })
    }

    /// Calls the plugin for `eth0` of a container.
    pub(crate) fn call(&self, command: &str, id: &str, netns: &str, conf: &Value) -> Result<Said> {
        let environment = environment(command, id, netns);
        self.raw(&environment, conf.to_string())
    }

    /// ADD for a namespace of this name, under the same identifier.
    pub(crate) fn add(&self, name: &str, conf: &Value) -> Result<Said> {
        self.call("ADD", name, &format!("/run/netns/{name}"), conf)
    }

    /// DEL without a namespace.
    pub(crate) fn del(&self, name: &str, conf: &Value) -> Result<Said> {
        self.call("DEL", name, "", conf)
    }

    pub(crate) fn check(&self, name: &str, conf: &Value) -> Result<Said> {
        self.call("CHECK", name, &format!("/run/netns/{name}"), conf)
    }

    /// GC of the configuration's network, in which these containers' `eth0` are known.
    pub(crate) fn collect(&self, conf: &Value, valid: &[&str]) -> Result<Said> {
        let valid: Vec<Value> = valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
        let mut conf = conf.clone();
        conf["cni.dev/valid-attachments"] = json!(valid);
        self.raw(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")], conf.to_string())
    }

    /// The names of the containers that the node knows.
    pub(crate) fn attached(&self) -> Result<Vec<String>> {
        let status = self.node.network("acme")?;
        let all = status["attached"].as_array().unwrap().clone();
        Ok(all.iter().map(|a| a["name"].as_str().unwrap().to_owned()).collect())
    }

    /// Waits until the agent has been asked something that it has not answered.
    pub(crate) fn wait_asked(&self) -> Result {
        let asked = || {
            let sockets = self.node.host().command("ss").args(["-xH", "state", "connected"]).run().ok()?;
            sockets.stdout.contains("agent.sock").then_some(())
        };
        Ok(probe::until("the agent to be asked", SOON, asked)?)
    }

    /// Waits until node and controller know these containers and no others.
    pub(crate) fn wait_left(&self, world: &World, names: &[&str]) -> Result {
        let left = || {
            let (here, there) = (self.attached().ok()?, containers(world).ok()?);
            (here == names && there == names).then_some(())
        };
        Ok(probe::until(&format!("nothing but {names:?} to be left"), SOON, left)?)
    }
}

pub(crate) fn environment<'a>(command: &'a str, id: &'a str, netns: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", id),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
}

/// The address of a result's first IPv6 entry, without its prefix length.
pub(crate) fn v6(result: &Value) -> String {
    let ips = result["ips"].as_array().unwrap();
    let found = ips.iter().filter_map(|ip| ip["address"].as_str()).find(|address| address.contains(':'));
    found.unwrap().split('/').next().unwrap().to_owned()
}

/// Waits until one container pings an address.
pub(crate) fn wait_pings(from: &Container, to: &str) -> Result {
    let seen = std::cell::RefCell::new(String::new());
    let answered = || {
        let ping = from.command("ping").args(["-n", "-c", "1", "-W", "0.3", to]).try_run().ok()?;
        *seen.borrow_mut() = format!("{}{}", ping.stdout, ping.stderr);
        ping.status.success().then_some(())
    };
    let waited = probe::until(&format!("{to} to answer"), FIRST_PACKET, answered);
    waited.with_context(|| format!("{} {}", seen.borrow(), links(from).unwrap_or_default()))
}

/// The links of a container, one a line.
pub(crate) fn links(container: &Container) -> Result<String> {
    Ok(container.command("ip").args(["-brief", "link"]).run()?.stdout)
}
