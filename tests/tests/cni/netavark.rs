//! The netavark plugin, called as netavark calls it. Debian 12's podman comes with a netavark that knows no plugins yet, so
//! what calls is this test.

use serde_json::{Value, json};
use znet_tests::{Node, Result, program};

use crate::common::{acme, containers, links, wait_pings};

/// What the plugin said, and whether it went well.
fn call(node: &Node, args: &[&str], input: &Value) -> Result<(bool, Value)> {
    let command = node.host().command(program("znet-cni")?).args(args).stdin(input.to_string());
    let output = command.try_run()?;
    assert_eq!(output.stderr, "", "{args:?}");
    let said = if output.stdout.is_empty() { Value::Null } else { serde_json::from_str(&output.stdout)? };
    Ok((output.status.success(), said))
}

fn well(node: &Node, args: &[&str], input: &Value) -> Result<Value> {
    let (went_well, said) = call(node, args, input)?;
    assert!(went_well, "{args:?}: {said}");
    Ok(said)
}

fn refused(node: &Node, args: &[&str], input: &Value) -> Result<String> {
    let (went_well, said) = call(node, args, input)?;
    assert!(!went_well, "{args:?}: {said}");
    Ok(said["error"].as_str().unwrap().to_owned())
}

fn exec(network: &Value, name: &str, more: &Value) -> Value {
    let mut exec = json!({
        "container_id": format!("id-of-{name}"), "container_name": name, "port_mappings": null, "network": network,
        "network_options": {"interface_name": "eth0", "aliases": [], "static_ips": null, "static_mac": null},
    });
    exec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    exec
}

#[test]
fn containers_of_podmans_networks_are_set_up_and_torn_down() -> Result {
    let (mut world, token) = acme("netavark")?;
    let (n1, n2) = (world.node("n1", &[&token])?, world.node("n2", &[&token])?);
    let far = n2.attach("acme", "far")?;
    assert_eq!(well(&n1, &["info"], &Value::Null)?["api_version"], "1.0.0");
    let asked = json!({
        "name": "podnet", "id": "0f", "driver": "znet", "dns_enabled": true, "internal": false, "ipv6_enabled": false,
        "subnets": null, "network_interface": "", "options": {"network": "acme"},
    });
    let network = well(&n1, &["create"], &asked)?;
    let (one, two) = (n1.host().container("one")?, n1.host().container("two")?);
    let (at_one, at_two) = ("/run/netns/one", "/run/netns/two");
    let first = exec(&network, "web_1", &json!({}));
    let status = well(&n1, &["setup", at_one], &first)?;
    let address = |status: &Value| {
        let subnets = status["interfaces"]["eth0"]["subnets"].as_array().unwrap().clone();
        let six = subnets.iter().filter_map(|subnet| subnet["ipnet"].as_str()).find(|net| net.contains(':'));
        six.unwrap().trim_end_matches("/128").to_owned()
    };
    assert_eq!(status["dns_server_ips"], json!(["127.0.0.153"]));
    assert_eq!(status["dns_search_domains"], json!(["acme.znet"]));
    wait_pings(&one, &far.v6()?.to_string())?;
    // An address that was asked for; and it is the one that the container has.
    let options = json!({"network_options": {"interface_name": "eth0", "static_ips": ["10.77.0.99"]}});
    let second = exec(&network, "two", &options);
    let status_two = well(&n1, &["setup", at_two], &second)?;
    assert!(
        status_two["interfaces"]["eth0"]["subnets"].to_string().contains("10.77.0.99/32"),
        "{status_two}"
    );
    wait_pings(&two, &address(&status))?;
    wait_pings(&one, "10.77.0.99")?;

    assert!(refused(&n1, &["setup", at_one], &first)?.contains("already"));
    assert!(refused(&n1, &["setup", "/run/netns/none"], &exec(&network, "x", &json!({})))?.contains("none"));
    let mut foreign = network;
    foreign["options"]["network"] = json!("blue");
    assert!(refused(&n1, &["setup", at_two], &exec(&foreign, "x", &json!({})))?.contains("blue"));
    assert!(refused(&n1, &["create"], &json!({"name": "x", "options": {}}))?.contains("--opt network="));
    assert_eq!(containers(&world)?.len(), 3, "what was refused left something behind");

    // Needs no namespace, can be repeated, and takes nothing else along.
    for _ in 0..2 {
        assert_eq!(well(&n1, &["teardown", "/run/netns/gone"], &first)?, Value::Null);
    }
    assert!(!links(&one)?.contains("eth0") && links(&two)?.contains("eth0"));
    assert_eq!(containers(&world)?, ["far", "two"]);
    well(&n1, &["teardown", at_two], &second)?;
    world.passed();
    Ok(())
}
