//! What Docker does: it asks the plugin, and moves links.

use std::path::PathBuf;
use std::time::Duration;

use netns_harness::{Container, Process, Signal, probe};
use serde_json::{Value, json};
use znet_tests::{NetworkSpec, Node, Result, World, program};

/// How long what an agent does by itself may take.
pub(crate) const SOON: Duration = Duration::from_secs(20);
const SOCKET: &str = "/run/docker/plugins/znet.sock";

/// A node with the plugin beside its agent.
pub(crate) struct Docker {
    pub(crate) node: Node,
    plugin: Option<Process>,
}

/// A started container of Docker's.
pub(crate) struct Started {
    pub(crate) container: Container,
    pub(crate) v6: String,
    pub(crate) v4: String,
}

/// A world with the network `acme`.
pub(crate) fn acme(purpose: &str) -> Result<(World, String)> {
    let world = World::new(purpose)?;
    let spec = NetworkSpec { name: "acme", prefixes: &["10.77.0.0/16"], rest: None };
    let token = world.controller.create_network(&spec)?;
    Ok((world, token))
}

/// The names of the containers that the controller knows.
pub(crate) fn containers(world: &World) -> Result<Vec<String>> {
    let all = world.controller.json(&["container", "list", "acme"])?;
    Ok(all.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect())
}

/// An identifier as Docker makes them.
pub(crate) fn id(seed: &str) -> String {
    let digits: String = seed.bytes().map(|b| format!("{b:02x}")).collect();
    format!("{digits:0<64}")
}

impl Docker {
    /// A node of `acme`, and on it Docker's network of the identifier `id("net")`.
    pub(crate) fn start(world: &mut World, name: &str, token: &str) -> Result<Self> {
        Self::start_at(world.node(name, &[token])?)
    }

    /// As [`Docker::start`], on a node that is there.
    pub(crate) fn start_at(node: Node) -> Result<Self> {
        let docker = Self::beside(node)?;
        docker.well("NetworkDriver.CreateNetwork", &network(&id("net"), json!({"znet.network": "acme"})))?;
        Ok(docker)
    }

    /// The plugin beside the agent of a node.
    pub(crate) fn beside(node: Node) -> Result<Self> {
        let mut docker = Self { node, plugin: None };
        docker.launch()?;
        Ok(docker)
    }

    fn state_dir(&self) -> PathBuf {
        self.node.host().dir().join("docker")
    }

    pub(crate) fn launch(&mut self) -> Result {
        let command = self.node.host().command(program("znet-docker")?).arg("--state-dir");
        let plugin = command.arg(self.state_dir()).spawn("znet-docker")?;
        plugin.wait_for_log("ready", SOON)?;
        self.plugin = Some(plugin);
        Ok(())
    }

    pub(crate) fn kill_plugin(&mut self) -> Result {
        self.plugin.take().unwrap().kill()?;
        Ok(())
    }

    pub(crate) fn stop_plugin(&mut self) -> Result {
        let plugin = self.plugin.take().unwrap();
        plugin.signal(Signal::SIGTERM)?;
        plugin.wait(SOON)?;
        Ok(())
    }

    /// Sends whatever to the plugin: the status, and the answer as it came.
    pub(crate) fn raw(&self, method: &str, call: &str, body: impl AsRef<[u8]>) -> Result<(u16, String)> {
        let command = self.node.host().command("curl").args(["-sS", "--max-time", "60"]);
        let command =
            command.args(["--unix-socket", SOCKET, "-X", method, "-w", "\n%{http_code} %{content_type}"]);
        let command =
            command.args(["-H", "Accept: application/vnd.docker.plugins.v1.2+json", "-H", "Expect:"]);
        let said = command.args(["--data-binary", "@-"]).arg(format!("http://plugin/{call}"));
        let said = said.stdin(body).run()?.stdout;
        let (said, end) = said.rsplit_once('\n').unwrap();
        let (status, kind) = end.split_once(' ').unwrap();
        assert_eq!(kind, "application/vnd.docker.plugins.v1.2+json");
        Ok((status.parse()?, said.to_owned()))
    }

    pub(crate) fn call(&self, call: &str, body: &Value) -> Result<(u16, Value)> {
        let (status, said) = self.raw("POST", call, body.to_string())?;
        Ok((status, serde_json::from_str(&said)?))
    }

    #[track_caller]
    pub(crate) fn well(&self, call: &str, body: &Value) -> Result<Value> {
        let (status, said) = self.call(call, body)?;
        assert!(status == 200 && said.get("Err").is_none(), "{call}: {status} {said}");
        Ok(said)
    }

    /// The call is refused, in these words.
    #[track_caller]
    pub(crate) fn refuses(&self, call: &str, body: &Value, status: u16, words: &str) -> Result {
        let (said, text) = self.call(call, body)?;
        let why = text["Err"].as_str().unwrap_or_default();
        assert!(said == status && why.contains(words), "{call}: {said} {text}, and not {status} {words:?}");
        Ok(())
    }

    /// What comes before a container's namespace: its endpoint. Returns addresses and the name of the link.
    pub(crate) fn prepare(&self, name: &str) -> Result<(Value, Value)> {
        let options = json!({"znet.name": name, "com.docker.network.portmap": [], "com.docker.network.endpoint.exposedports": []});
        let made = self.well(
            "NetworkDriver.CreateEndpoint",
            &endpoint(name, json!({"Interface": {}, "Options": options})),
        )?;
        self.well("NetworkDriver.EndpointOperInfo", &endpoint(name, json!({})))?;
        let joined = self.well("NetworkDriver.Join", &endpoint(name, join(name)))?;
        assert_eq!(joined["DisableGatewayService"], true, "Docker would lead it to the internet: {joined}");
        Ok((made, joined))
    }

    /// What libnetwork does once there is a namespace (`osl/interface_linux.go`): it moves the link, renames it, gives it
    /// addresses, sets it up and adds routes, each of which fails where it is there already.
    pub(crate) fn enter(&self, name: &str, (made, joined): &(Value, Value)) -> Result<Started> {
        let container = self.node.host().container(name)?;
        let link = joined["InterfaceName"]["SrcName"].as_str().unwrap();
        let seen = self.node.host().command("ip").args(["-brief", "link", "show", link]).run()?.stdout;
        assert!(seen.contains("DOWN") && !seen.contains(",UP"), "it is not to be used here: {seen}");
        self.node.host().command("ip").args(["link", "set", link, "netns", name]).run()?;
        let ip = |args: &[&str]| -> Result {
            container.command("ip").args(args).run()?;
            Ok(())
        };
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "set", link, "down"])?;
        ip(&["link", "set", link, "name", "eth0"])?;
        let address = |key: &str| made["Interface"][key].as_str().unwrap().to_owned();
        let (v4, v6) = (address("Address"), address("AddressIPv6"));
        for address in [&v4, &v6] {
            ip(&["address", "add", address, "dev", "eth0"])?;
        }
        ip(&["link", "set", "eth0", "up"])?;
        for route in joined["StaticRoutes"].as_array().unwrap() {
            assert_eq!(route["RouteType"], 1);
            ip(&["route", "add", route["Destination"].as_str().unwrap(), "dev", "eth0", "scope", "link"])?;
        }
        let bare = |net: &str| net.split('/').next().unwrap().to_owned();
        Ok(Started { container, v6: bare(&v6), v4: bare(&v4) })
    }

    /// `docker run`, until the container's process is started.
    pub(crate) fn run(&self, name: &str) -> Result<Started> {
        self.enter(name, &self.prepare(name)?)
    }

    /// `docker stop`, in the order of libnetwork.
    pub(crate) fn stop(&self, name: &str) -> Result {
        for call in ["Leave", "DeleteEndpoint"] {
            self.well(&format!("NetworkDriver.{call}"), &endpoint(name, json!({})))?;
        }
        Ok(())
    }

    /// What the node says of an attached container.
    pub(crate) fn attached(&self, name: &str) -> Result<Option<Value>> {
        let status = self.node.network("acme")?;
        Ok(status["attached"].as_array().unwrap().iter().find(|a| a["name"] == name).cloned())
    }

    /// Waits until the agent looks after a container's device as after every other.
    pub(crate) fn wait_settled(&self, name: &str) -> Result {
        let settled = || (self.attached(name).ok()??["ifname"] == "eth0").then_some(());
        Ok(probe::until("the device to be where it belongs", SOON, settled)?)
    }

    /// Waits until the node has these containers and no others, and no device is left on the host.
    pub(crate) fn wait_here(&self, names: &[&str]) -> Result {
        let left = || {
            let status = self.node.network("acme").ok()?;
            let here: Vec<&str> =
                status["attached"].as_array()?.iter().map(|a| a["name"].as_str().unwrap()).collect();
            let links = self.node.host().command("ip").args(["-brief", "link"]).run().ok()?.stdout;
            (here == names && !links.lines().any(|link| link.starts_with("zn"))).then_some(())
        };
        Ok(probe::until(&format!("nothing but {names:?} to be left here"), SOON, left)?)
    }

    /// The same, of the controller as well.
    pub(crate) fn wait_left(&self, world: &World, names: &[&str]) -> Result {
        self.wait_here(names)?;
        let left = || (containers(world).ok()? == names).then_some(());
        Ok(probe::until("the controller to be told", SOON, left)?)
    }
}

/// CreateNetwork with these options, and the pools of the `null` address manager.
pub(crate) fn network(id: &str, options: Value) -> Value {
    json!({
        "NetworkID": id, "IPv6Data": [],
        "IPv4Data": [{"AddressSpace": "null", "Pool": "0.0.0.0/0", "Gateway": "0.0.0.0/0", "AuxAddresses": null}],
        "Options": {"com.docker.network.enable_ipv6": false, "com.docker.network.generic": options},
    })
}

/// A request about the endpoint of a container.
pub(crate) fn endpoint(name: &str, more: Value) -> Value {
    let mut asked = json!({"NetworkID": id("net"), "EndpointID": id(name)});
    asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    asked
}

/// What Join says more.
pub(crate) fn join(name: &str) -> Value {
    json!({"SandboxKey": format!("/run/netns/{name}"), "Options": {"com.docker.network.endpoint.exposedports": []}})
}
