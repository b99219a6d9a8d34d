//! `./x demo`: two tenants' networks on three virtual hosts, with real programs that talk through them.
//!
//! Everything shown is done by the programs that users run, and printed as it happens. The demo fails when any of it does.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use netns_harness::{Process, probe};
use tempfile::TempDir;
use znet_tests::{Member, Node, Result, World};

/// Both tenants have the very same prefixes.
const PREFIX4: &str = "10.77.0.0/16";
const PREFIX6: &str = "fd77:7777:7777::/48";
/// How long a service may take to listen.
const SERVICE: Duration = Duration::from_secs(30);
/// How long the first ping between two containers may take.
const PING: Duration = Duration::from_secs(10);

fn main() -> Result {
    let begun = Instant::now();
    title("A lab: one underlay, a host for the controller, three hosts for nodes");
    let mut world = World::new("demo")?;
    say(&format!("the logs of everything are in {}", world.lab.dir().display()));

    title("The controller: one process, one SQLite file");
    let data = world.controller.data_dir();
    let store = world.controller.host().command("ls").args(["-l", "--time-style=+"]).arg(&data).run()?;
    show("ls -l DATA_DIR", &store.stdout);

    title("Two tenants create their networks, with the same prefixes");
    let blue = tenant(&world, "blue")?;
    let green = tenant(&world, "green")?;
    run(&world, &["network", "list"])?;

    title("Three nodes join both, by token");
    let mut nodes = Vec::new();
    for name in ["n1", "n2", "n3"] {
        nodes.push(world.node(name, &[&blue, &green])?);
    }
    for node in &nodes {
        node.wait_connected("blue")?;
        node.wait_connected("green")?;
    }
    run(&world, &["node", "list", "blue"])?;

    title("Eight containers, each a network namespace with nothing in it");
    let [n1, n2, n3] = nodes.as_slice() else { anyhow::bail!("three nodes were started") };
    let blues = attach_all("blue", &[(n1, "web"), (n2, "db"), (n3, "shop"), (n1, "job")])?;
    let greens = attach_all("green", &[(n1, "web"), (n2, "api"), (n3, "app"), (n2, "log")])?;
    run(&world, &["container", "list", "blue"])?;
    run(&world, &["container", "list", "green"])?;

    title("Inside a container: lo, the znet device, the network's prefixes, and no way out");
    let shop = named(&blues, "shop")?;
    for command in ["ip -brief address", "ip route", "ip -6 route"] {
        let mut words = command.split(' ');
        let program = words.next().unwrap_or_default();
        show(command, &shop.command(program).args(words.collect::<Vec<_>>()).run()?.stdout);
    }

    title("A full mesh inside each network");
    mesh("blue", &blues)?;
    mesh("green", &greens)?;

    title("And nothing between them");
    isolation(&blues, &greens)?;

    title("PostgreSQL in blue/db on n2, psql in blue/shop on n3");
    let postgres = postgres(named(&blues, "db")?)?;
    psql(shop, named(&blues, "db")?)?;

    title("An HTTP server in green/web on n1, curl in green/app on n3, over IPv6 and IPv4");
    let http = http(named(&greens, "web")?, named(&greens, "app")?)?;

    title("What wg(8) sees on n1");
    show("wg show", &n1.host().command("wg").args(["show"]).run()?.stdout);

    title("The underlay carries WireGuard and nothing else");
    underlay(&world, n1, named(&blues, "web")?, named(&blues, "db")?)?;

    title("kill -9 of the agent on n1 and of the controller: links go on");
    failures(&mut world, &mut nodes, &blues)?;

    title("How the networks fare");
    run(&world, &["status"])?;
    drop((postgres, http));
    world.passed();
    println!("\nThe demo is done: everything above worked, in {:.0} s.", begun.elapsed().as_secs_f64());
    Ok(())
}

fn title(text: &str) {
    println!("\n\x1b[1m## {text}\x1b[0m");
}

fn say(text: &str) {
    println!("   {text}");
}

fn show(command: &str, output: &str) {
    println!("   $ {command}");
    for line in output.lines() {
        println!("   {line}");
    }
}

fn run(world: &World, args: &[&str]) -> Result {
    let output = world.controller.ctl(args)?;
    show(&format!("znet-ctl {}", args.join(" ")), &output.stdout);
    Ok(())
}

fn tenant(world: &World, name: &str) -> Result<String> {
    let args = ["network", "create", name, "--prefix", PREFIX4, "--prefix", PREFIX6];
    println!("   $ znet-ctl {}", args.join(" "));
    let created = world.controller.json(&args)?;
    let token = created.get("join_token").and_then(|token| token.as_str()).context("no join token")?;
    say(&format!("join token {}… ({} characters)", token.chars().take(24).collect::<String>(), token.len()));
    Ok(token.to_owned())
}

fn attach_all(network: &str, wanted: &[(&Node, &str)]) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    for (node, name) in wanted {
        let begun = Instant::now();
        members.push(node.attach(network, name)?);
        let took = begun.elapsed().as_millis();
        say(&format!(
            "{}: znet-agent attach --network {network} --name {name} --netns /run/netns/{network}-{name} --wait   ({took} ms)",
            node.name()
        ));
    }
    Ok(members)
}

fn named<'a>(members: &'a [Member], name: &str) -> Result<&'a Member> {
    members.iter().find(|member| member.name == name).with_context(|| format!("no container {name}"))
}

fn mesh(network: &str, members: &[Member]) -> Result {
    let begun = Instant::now();
    let mut pings = 0;
    for member in members {
        member.reaches_all(members, PING)?;
        pings += (members.len() - 1) * member.addresses.len();
    }
    let took = begun.elapsed().as_millis();
    say(&format!(
        "{network}: {pings} of {pings} pings answered, every pair, both ways, IPv6 and IPv4 ({took} ms)"
    ));
    Ok(())
}

/// Both networks have the same addresses. Who answers tells which network it is in, so each container is asked its name.
fn isolation(blues: &[Member], greens: &[Member]) -> Result {
    for (asked, members) in [("blue", blues), ("green", greens)] {
        let [first, second, ..] = members else { anyhow::bail!("two containers are needed") };
        let address = second.v4()?;
        let server = serve_name(second, asked)?;
        let told = first
            .command("curl")
            .args(["-sS", "--max-time", "10", &format!("http://{address}:8080/name")])
            .run()?;
        ensure!(told.stdout.trim() == asked, "{address} in {asked} says {:?}", told.stdout);
        say(&format!(
            "{address} seen from {asked}/{}: a server that says it is in {}",
            first.name,
            told.stdout.trim()
        ));
        drop(server);
    }
    // An address that green has and blue does not.
    let [blue, ..] = blues else { anyhow::bail!("no container in blue") };
    let beyond: Vec<IpAddr> = blues.iter().flat_map(|member| member.addresses.clone()).collect();
    let foreign = "10.77.200.1";
    ensure!(!beyond.contains(&foreign.parse()?), "{foreign} is in use");
    ensure!(!blue.pings(foreign.parse()?, Duration::from_secs(1))?, "{foreign} answers");
    say(&format!("{foreign} from blue/{}: no answer, as nobody in blue has it", blue.name));
    let out = blue.command("ping").args(["-n", "-c", "1", "-W", "1", "192.0.2.1"]).try_run()?;
    ensure!(!out.status.success(), "the underlay answers from inside a container");
    let said = if out.stderr.trim().is_empty() { out.stdout.trim() } else { out.stderr.trim() };
    say(&format!("192.0.2.1, the controller's underlay address, from blue/{}: {said}", blue.name));
    Ok(())
}

/// A server in a container, and the directory from which it serves.
struct Server {
    // The first field is dropped first: the process ends before its directory goes.
    _process: Process,
    _dir: TempDir,
}

fn directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("zt-demo-").tempdir()?)
}

fn serve_name(member: &Member, network: &str) -> Result<Server> {
    let dir = directory()?;
    std::fs::write(dir.path().join("name"), network)?;
    let server = member
        .command("python3")
        .args(["-m", "http.server", "8080", "--bind", &member.v4()?.to_string(), "--directory"])
        .arg(dir.path())
        .spawn(&format!("{network}-name"))?;
    wait_listening(member, 8080)?;
    Ok(Server { _process: server, _dir: dir })
}

fn wait_listening(member: &Member, port: u16) -> Result {
    let listens = || {
        let sockets = member.command("ss").args(["-Hltn", &format!("sport = :{port}")]).run().ok()?;
        (!sockets.stdout.trim().is_empty()).then_some(())
    };
    probe::until(&format!("port {port} of {}", member.name), SERVICE, listens)?;
    Ok(())
}

/// A PostgreSQL server as Debian ships it, in a container.
fn postgres(db: &Member) -> Result<Server> {
    let bin = glob_postgres()?;
    let dir = directory()?;
    let data = dir.path().join("data");
    let as_postgres = |program: &str| {
        db.command("setpriv")
            .args([
                "--reuid=postgres",
                "--regid=postgres",
                "--clear-groups",
                "--",
                &format!("{bin}/{program}"),
            ])
            .current_dir("/")
    };
    db.command("chown").args(["postgres:postgres"]).arg(dir.path()).run()?;
    as_postgres("initdb").args(["--auth=trust", "--no-sync", "-D"]).arg(&data).run()?;
    std::fs::write(
        data.join("pg_hba.conf"),
        format!("host all all {PREFIX4} trust\nhost all all {PREFIX6} trust\n"),
    )?;
    let server = as_postgres("postgres")
        .args(["-D"])
        .arg(&data)
        .args(["-c", "listen_addresses=*", "-c"])
        .arg(format!("unix_socket_directories={}", dir.path().display()))
        .spawn("postgres")?;
    wait_listening(db, 5432)?;
    say(&format!("{bin}/postgres listens at {} and {}, port 5432", db.v6()?, db.v4()?));
    Ok(Server { _process: server, _dir: dir })
}

fn glob_postgres() -> Result<String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .context("PostgreSQL is not installed: apt-get install postgresql")?;
    let mut newest: Vec<_> = versions
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("postgres").exists())
        .collect();
    newest.sort();
    let bin = newest.pop().context("PostgreSQL is not installed: apt-get install postgresql")?;
    Ok(bin.display().to_string())
}

fn psql(from: &Member, db: &Member) -> Result {
    let sql = "create table orders (item text, pieces int); insert into orders values ('apples', 12), ('pears', 7); select * from orders; select inet_client_addr() as client, inet_server_addr() as server";
    for (address, sql) in [
        (db.v6()?, sql),
        (db.v4()?, "select sum(pieces) as pieces, inet_client_addr() as client from orders"),
    ] {
        let host = address.to_string();
        let output = from.command("psql").args(["-X", "-h", &host, "-U", "postgres", "-c", sql]).run()?;
        show(&format!("psql -h {host} -c \"{sql}\""), &output.stdout);
    }
    Ok(())
}

fn http(server: &Member, client: &Member) -> Result<Server> {
    let dir = directory()?;
    std::fs::write(dir.path().join("hello"), "hello out of another namespace, on another host\n")?;
    let process = server
        .command("python3")
        .args(["-m", "http.server", "80", "--bind", "::", "--directory"])
        .arg(dir.path())
        .spawn("http")?;
    wait_listening(server, 80)?;
    for url in [format!("http://[{}]/hello", server.v6()?), format!("http://{}/hello", server.v4()?)] {
        let output = client.command("curl").args(["-sS", "--max-time", "20", &url]).run()?;
        ensure!(output.stdout.contains("hello"), "{url} says {:?}", output.stdout);
        show(&format!("curl {url}"), &output.stdout);
    }
    Ok(Server { _process: process, _dir: dir })
}

fn underlay(world: &World, node: &Node, from: &Member, to: &Member) -> Result {
    let capture = node.host().capture("eth0", "udp or icmp or icmp6 or (tcp and not port 7443)")?;
    let output = from.command("ping").args(["-n", "-c", "3", "-i", "0.2", &to.v4()?.to_string()]).run()?;
    let summary = output.stdout.lines().find(|line| line.contains("packets")).unwrap_or_default().to_owned();
    show(&format!("ping -c 3 {}   (blue/{} to blue/{})", to.v4()?, from.name, to.name), &summary);
    let text = capture.text()?;
    let wireguard = text.lines().filter(|line| line.contains("UDP")).count();
    let clear = text.lines().filter(|line| line.contains("10.77.") || line.contains("fd77:")).count();
    ensure!(wireguard >= 6 && clear == 0, "the capture shows something else:\n{text}");
    say(&format!(
        "tcpdump on n1's eth0 meanwhile: {wireguard} UDP datagrams, {clear} with an address of a container"
    ));
    let _ = world;
    Ok(())
}

fn failures(world: &mut World, nodes: &mut [Node], blues: &[Member]) -> Result {
    let (web, db) = (named(blues, "web")?, named(blues, "db")?);
    let to = db.v6()?.to_string();
    let flood =
        web.command("ping").args(["-n", "-i", "0.01", "-c", "300", &to]).spawn("ping-through-failures")?;
    world.controller.kill()?;
    let [n1, ..] = nodes else { anyhow::bail!("no node") };
    n1.kill_agent()?;
    say("killed the controller and the agent of n1; blue/web goes on pinging blue/db, 100 times a second");
    n1.launch()?;
    world.controller.launch()?;
    let status = flood.wait(Duration::from_secs(30))?;
    let summary = flood.stdout()?;
    let summary = summary.lines().find(|line| line.contains("packet loss")).unwrap_or_default().to_owned();
    show(&format!("ping -i 0.01 -c 300 {to}"), &summary);
    ensure!(status.success() && summary.contains(" 0% packet loss"), "packets were lost: {summary}");
    for node in nodes.iter() {
        node.wait_connected("blue")?;
        node.wait_connected("green")?;
    }
    say("both are back, and every node is connected again");
    Ok(())
}
