//! What deployment tooling uses: the examples, manifests, operators' tokens from another machine, man pages.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use netns_harness::Process;
use znet_tests::{FIRST_PACKET, Node, NodeOptions, Result, World, program};

const SOON: Duration = Duration::from_secs(30);

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples")
}

/// The join token in what a tool prints.
fn token(tool: &Process) -> Result<String> {
    tool.wait_for_log("--join znet1.", SOON)?;
    let text = tool.stdout()?;
    Ok(text.split("--join ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned())
}

#[test]
fn the_deployment_tool_in_rust_waits_until_the_deployment_stands() -> Result {
    let mut world = World::new("deploy-rust")?;
    let tool = world.controller.host().command(program("deploy")?);
    let args = ["acme", "--prefix", "10.77.0.0/16", "--nodes", "2", "--container", "web", "--timeout", "60s"];
    let tool = tool.args(args).spawn("deploy")?;
    let token = token(&tool)?;
    let nodes = [world.node("n1", &[&token])?, world.node("n2", &[&token])?];
    let web = nodes[0].attach("acme", "web")?;
    assert!(tool.wait(SOON)?.success(), "{}", tool.stderr()?);
    let said = tool.stdout()?;
    assert!(said.contains(&format!("web on n1: {} {}", web.v6()?, web.v4()?)), "{said}");
    world.passed();
    Ok(())
}

#[test]
fn the_deployment_script_works_on_the_spot_and_from_another_machine() -> Result {
    let mut world = World::new("deploy-curl")?;
    let script = examples().join("deploy.sh");
    let here = world.controller.host().command("bash").arg(&script).args(["acme", "1"]).spawn("deploy")?;
    let first = token(&here)?;
    let _n1 = world.node("n1", &[&first])?;
    assert!(here.wait(SOON)?.success(), "{}", here.stderr()?);
    let operator = world.controller.json(&["operator", "create", "the script", "--role", "admin"])?;
    let far = world.host("far")?;
    let with = |pin: &str| {
        let command = far.command("bash").arg(&script).args(["acme", "2"]);
        command
            .env("ZNET_CONTROLLER", "192.0.2.1:7443")
            .env("ZNET_PIN", pin)
            .env("ZNET_OPERATOR_TOKEN", operator["operator_token"].as_str().unwrap())
    };
    let away = with(operator["pin"].as_str().unwrap()).spawn("deploy-far")?;
    let second = token(&away)?;
    let _n2 = world.node("n2", &[&second])?;
    assert!(away.wait(SOON)?.success(), "{}", away.stderr()?);
    let wrong = with(&"00".repeat(32)).try_run()?;
    assert!(!wrong.status.success(), "a wrong pin was accepted: {}", wrong.stdout);
    world.passed();
    Ok(())
}

#[test]
fn a_manifest_is_applied_once_and_shows_what_it_would_change() -> Result {
    let mut world = World::new("apply")?;
    let toml = examples().join("postgres.toml").display().to_string();
    let yaml = examples().join("postgres.yaml").display().to_string();
    let dry = world.controller.ctl(&["apply", &toml, "--dry-run"])?.stdout;
    for line in ["+ network shop 10.77.0.0/16", "+ token nodes", "+ container db 10.77.0.10", "dry run"] {
        assert!(dry.contains(line), "{dry}");
    }
    assert_eq!(world.controller.json(&["network", "list"])?, serde_json::json!([]));
    let applied = world.controller.json(&["apply", &toml])?;
    let token = applied.as_array().unwrap().iter().find_map(|step| step["join_token"].as_str()).unwrap();
    for file in [&toml, &yaml] {
        let again = world.controller.ctl(&["apply", file])?.stdout;
        assert_eq!(again.trim(), "everything is as the manifest says");
    }
    let node = world.node("n1", &[token])?;
    let (db, app) = (node.attach("shop", "db")?, node.attach("shop", "app")?);
    assert_eq!(db.v4()?.to_string(), "10.77.0.10");
    app.wait_reaches(db.v4()?, FIRST_PACKET)?;
    let text = std::fs::read_to_string(&toml)?.replace("10.77.0.0/16", "10.78.0.0/16");
    let changed = world.controller.host().dir().join("changed.toml");
    std::fs::write(&changed, text)?;
    let refused = world.controller.try_ctl(&["apply", changed.to_str().unwrap()])?;
    assert_eq!(refused.status.code(), Some(4), "{}", refused.stderr);
    assert!(refused.stderr.contains("prefixes cannot change"), "{}", refused.stderr);
    world.passed();
    Ok(())
}

#[test]
fn an_operator_works_from_another_machine_within_the_scope_of_the_token() -> Result {
    let mut world = World::new("remote")?;
    world.controller.ctl(&["network", "create", "acme", "--no-token"])?;
    world.controller.ctl(&["network", "create", "other", "--no-token"])?;
    let made =
        world.controller.json(&["operator", "create", "CI", "--role", "deploy", "--network", "acme"])?;
    let (text, pin) = (made["operator_token"].as_str().unwrap(), made["pin"].as_str().unwrap());
    let far = world.host("far")?;
    let ctl = |pin: &str, args: &[&str]| -> Result<netns_harness::Output> {
        let command = far.command(program("znet-ctl")?).args(args).env("ZNET_OPERATOR_TOKEN", text);
        Ok(command.env("ZNET_CONTROLLER", "192.0.2.1:7443").env("ZNET_PIN", pin).try_run()?)
    };
    let token = ctl(pin, &["token", "create", "acme", "--quiet"])?;
    assert!(token.stdout.starts_with("znet1."), "{}", token.stderr);
    assert_eq!(ctl(pin, &["network", "show", "other"])?.status.code(), Some(3));
    assert_eq!(ctl(pin, &["network", "delete", "acme", "--yes"])?.status.code(), Some(5));
    let mismatch = ctl(&"11".repeat(32), &["network", "list"])?;
    assert_eq!(mismatch.status.code(), Some(5), "{}", mismatch.stderr);
    assert!(mismatch.stderr.contains("somebody may be in the middle"), "{}", mismatch.stderr);
    let host = world.host("n1")?;
    let tokens = vec![token.stdout.trim().to_owned()];
    Node::start("n1", &host, NodeOptions { tokens, ..NodeOptions::default() })?.wait_connected("acme")?;
    world.passed();
    Ok(())
}

#[test]
fn settings_come_from_flags_then_the_environment_then_the_file() -> Result {
    let world = World::new("settings")?;
    world.controller.ctl(&["network", "create", "acme", "--no-token"])?;
    let host = world.controller.host();
    let file = host.dir().join("ctl.toml");
    std::fs::write(&file, "output = 'json'\nsocket = '/run/nowhere.sock'\n")?;
    let ctl = || {
        Ok::<_, anyhow::Error>(
            host.command(program("znet-ctl")?).args(["network", "list", "--config"]).arg(&file),
        )
    };
    let nowhere = ctl()?.try_run()?;
    assert_eq!(nowhere.status.code(), Some(6), "{}", nowhere.stderr);
    assert!(nowhere.stderr.contains("/run/nowhere.sock"), "{}", nowhere.stderr);
    let by_env = ctl()?.env("ZNET_CTL_SOCKET", "/run/znet-ctl/ctl.sock").run()?;
    assert!(by_env.stdout.starts_with('['), "{}", by_env.stdout);
    let socket = ["--socket", "/run/znet-ctl/ctl.sock", "--output", "table"];
    let by_flag = ctl()?.args(socket).env("ZNET_CTL_SOCKET", "/run/nowhere.sock").run()?;
    assert!(by_flag.stdout.starts_with("NETWORK"), "{}", by_flag.stdout);
    std::fs::write(&file, "sockte = 'x'\n")?;
    let misspelt = ctl()?.try_run()?;
    assert_eq!(misspelt.status.code(), Some(2));
    assert!(misspelt.stderr.contains("sockte"), "{}", misspelt.stderr);
    world.passed();
    Ok(())
}

#[test]
fn man_pages_and_completions_are_made_by_the_programs() -> Result {
    let dir = tempfile::Builder::new().prefix("zt-man-").tempdir()?;
    for name in ["znet-ctl", "znet-agent"] {
        let run = |args: &[&str]| {
            std::process::Command::new(program(name)?).args(args).output().map_err(anyhow::Error::from)
        };
        assert!(run(&["man", dir.path().to_str().unwrap()])?.status.success());
        let page = std::fs::read_to_string(dir.path().join(format!("{name}.1")))?;
        assert!(page.contains(".TH") && page.contains("Exit codes"), "{page}");
        for shell in ["bash", "zsh", "fish"] {
            assert!(run(&["completions", shell])?.stdout.len() > 1_000);
        }
    }
    let pages = std::fs::read_dir(dir.path())?.count();
    assert!(pages > 20, "{pages} pages");
    Ok(())
}
