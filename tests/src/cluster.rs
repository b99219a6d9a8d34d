//! A deployment without a single point of failure: three members of etcd and two controllers, each on a host of its own.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use netns_harness::{Host, Lab, Port, Process, Switch, probe};
use serde_json::Value;

use crate::controller::ControllerOptions;
use crate::{Controller, Node, NodeOptions, Result};

/// How long a member may take to serve, and the cluster to have a leader.
const START: Duration = Duration::from_secs(30);
/// Members of the cluster.
const MEMBERS: u8 = 3;
/// The table that cuts a host off.
const CUT: &str = "zt-cut";

/// One member of etcd.
pub struct Member {
    host: Host,
    number: u8,
    process: Option<Process>,
}

/// The lab, with everything in it.
pub struct Cluster {
    /// The controllers. Each names itself first in the tokens that it makes.
    pub controllers: [Controller; 2],
    /// The members of etcd.
    pub members: Vec<Member>,
    switch: Switch,
    next_host: u8,
    /// Last, so that it is taken down after everything that runs in it.
    pub lab: Lab,
}

fn member_address(number: u8) -> String {
    format!("192.0.2.{}", 100 + number)
}

fn plug(lab: &Lab, host: &Host, switch: &Switch, address: &str) -> Result {
    Ok(lab.plug(host, switch, Port::new("eth0").address(&format!("{address}/24")))?)
}

impl Member {
    /// Starts it on what it has stored so far; does not wait, as it needs the others to serve.
    fn launch(&mut self) -> Result {
        let at = |number| format!("m{number}=http://{}:2380", member_address(number));
        let all: Vec<String> = (0..MEMBERS).map(at).collect();
        let own = member_address(self.number);
        let (client, peer) = (format!("http://{own}:2379"), format!("http://{own}:2380"));
        let process = self
            .host
            .command("etcd")
            .args(["--name", &format!("m{}", self.number), "--initial-cluster", &all.join(",")])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .arg("--data-dir")
            .arg(self.host.dir().join("etcd"))
            .spawn("etcd")
            .context("this needs etcd: apt-get install etcd-server")?;
        self.process = Some(process);
        Ok(())
    }

    /// Asks it over its HTTP gateway.
    fn ask(&self, path: &str, body: &str) -> Result<String> {
        let url = format!("http://{}:2379{path}", member_address(self.number));
        let mut command = self.host.command("curl").args(["-sS", "--max-time", "2"]);
        if !body.is_empty() {
            command = command.args(["-d", body]);
        }
        Ok(command.arg(url).run()?.stdout)
    }

    fn leads(&self) -> bool {
        self.process.is_some()
            && self
                .ask("/metrics", "")
                .is_ok_and(|text| text.lines().any(|line| line == "etcd_server_is_leader 1"))
    }
}

impl Cluster {
    /// Everything up: the members have a leader, the controllers serve.
    ///
    /// # Errors
    /// There is no root or no etcd, or a part does not come up.
    pub fn new(purpose: &str) -> Result<Self> {
        let lab = Lab::new(purpose)?;
        let switch = lab.switch("underlay")?;
        let mut members = Vec::new();
        for number in 0..MEMBERS {
            let host = lab.host(&format!("e{number}"))?;
            plug(&lab, &host, &switch, &member_address(number))?;
            let mut member = Member { host, number, process: None };
            member.launch()?;
            members.push(member);
        }
        let urls: Vec<String> =
            (0..MEMBERS).map(|number| format!("http://{}:2379", member_address(number))).collect();
        probe::until("etcd to have a leader", START, || members.iter().find(|member| member.leads()))?;
        let controller = |number: u8, key: Option<&Controller>| -> Result<Controller> {
            let host = lab.host(&format!("c{number}"))?;
            let addresses = [format!("192.0.2.{number}"), format!("192.0.2.{}", 3 - number)];
            let [own, _] = &addresses;
            plug(&lab, &host, &switch, own)?;
            let mut flags = vec!["--store".to_owned(), format!("etcd:{}", urls.join(","))];
            if let Some(first) = key {
                // The operator's part: every controller has the key of the store.
                let file = first.data_dir().join("store.key");
                flags.extend(["--store-key".to_owned(), file.display().to_string()]);
            }
            let options = ControllerOptions { advertise: addresses.to_vec(), flags, env: vec![] };
            Controller::start_with(&host, options)
        };
        let first = controller(1, None)?;
        let second = controller(2, Some(&first))?;
        Ok(Self { controllers: [first, second], members, switch, next_host: 10, lab })
    }

    /// One more node, which joins by this token and is connected.
    ///
    /// # Errors
    /// It does not come up.
    pub fn node(&mut self, name: &str, token: &str) -> Result<Node> {
        self.next_host += 1;
        let host = self.lab.host(name)?;
        plug(&self.lab, &host, &self.switch, &format!("192.0.2.{}", self.next_host))?;
        Node::start(name, &host, NodeOptions { tokens: vec![token.to_owned()], ..NodeOptions::default() })
    }

    /// Ends the member that leads without warning, and starts it again once another one leads.
    ///
    /// # Errors
    /// There is no leader, or no other one comes.
    pub fn kill_the_leader(&mut self) -> Result {
        let leads = || self.members.iter().position(Member::leads);
        let at = probe::until("etcd to have a leader", START, leads)?;
        let member = self.members.get_mut(at).context("no such member")?;
        member.process.take().context("the member was stopped")?.kill()?;
        probe::until("another member to lead", START, || self.members.iter().find(|member| member.leads()))?;
        self.members.get_mut(at).context("no such member")?.launch()
    }

    /// Removes all of etcd's history before now.
    ///
    /// # Errors
    /// What etcd said.
    pub fn compact(&self) -> Result {
        let member = self.members.first().context("no such member")?;
        let text = member.ask("/v3/kv/range", r#"{"key":"AA=="}"#)?;
        let now: Value = serde_json::from_str(&text)?;
        let revision = now.pointer("/header/revision").and_then(Value::as_str);
        let revision = revision.ok_or_else(|| anyhow!("no revision in {text}"))?;
        let said =
            member.ask("/v3/kv/compaction", &format!(r#"{{"revision":"{revision}","physical":true}}"#))?;
        if said.contains("error") { Err(anyhow!("etcd does not compact: {said}")) } else { Ok(()) }
    }

    /// Drops everything that a host sends or receives; nobody is told.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cut_off(host: &Host) -> Result {
        Ok(host.nft(&format!(
            "table inet {CUT} {{\n\
               chain in {{ type filter hook input priority -300; iifname \"eth0\" drop; }}\n\
               chain out {{ type filter hook output priority -300; oifname \"eth0\" drop; }}\n\
             }}"
        ))?)
    }

    /// Drops what a host sends to etcd, and nothing else; nobody is told.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cut_off_from_etcd(host: &Host) -> Result {
        Ok(host.nft(&format!(
            "table inet {CUT} {{\n\
               chain out {{ type filter hook output priority -300; tcp dport 2379 drop; }}\n\
             }}"
        ))?)
    }

    /// Takes [`Cluster::cut_off`] and [`Cluster::cut_off_from_etcd`] back.
    ///
    /// # Errors
    /// It was not cut off.
    pub fn heal(host: &Host) -> Result {
        host.command("nft").args(["delete", "table", "inet", CUT]).run()?;
        Ok(())
    }

    /// The host of a member.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn member_host(&self, number: usize) -> Result<&Host> {
        Ok(&self.members.get(number).context("no such member")?.host)
    }

    /// The number of a member that does not lead.
    ///
    /// # Errors
    /// There is none.
    pub fn follower(&self) -> Result<usize> {
        let follows = |member: &Member| member.process.is_some() && !member.leads();
        self.members.iter().position(follows).context("no member follows")
    }
}
