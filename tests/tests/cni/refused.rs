//! What cannot be meant is refused by number, with the reason, and changes nothing.

use serde_json::{Value, json};
use znet_tests::Result;

use crate::common::{acme, conf, containers, environment, links, place};

#[test]
fn configurations_and_environments_that_cannot_be_used_are_refused() -> Result {
    let (mut world, token) = acme("cni-refused")?;
    let here = place(&mut world, "n1", &[&token])?;
    let container = here.container("web")?;
    let good = environment("ADD", "web", "/run/netns/web");
    let changed = |more: Value| conf(more).to_string();
    let huge = format!("{{\"cniVersion\":\"1.1.0\",\"padding\":\"{}\"}}", "x".repeat(8 << 20));
    let cases: Vec<(String, u64, &str)> = vec![
        (String::new(), 6, "JSON"),
        ("not JSON".to_owned(), 6, "JSON"),
        ("[]".to_owned(), 6, "object"),
        ("{".repeat(100_000), 6, "JSON"),
        (huge, 6, "larger than"),
        (changed(json!({"cniVersion": "9.9.9"})), 1, "9.9.9"),
        (changed(json!({"cniVersion": "banana"})), 1, "banana"),
        (changed(json!({"cniVersion": 1})), 1, "plugin speaks"),
        (changed(json!({"name": "../etc"})), 7, "../etc"),
        (changed(json!({"name": ""})), 7, "name"),
        (changed(json!({"network": null})), 7, "ZNET_NETWORK"),
        (changed(json!({"network": "nope"})), 7, "nope"),
        (changed(json!({"network": ["acme"]})), 7, "sequence"),
        (changed(json!({"interface": "a-name-far-too-long"})), 7, "a-name-far-too-long"),
        (changed(json!({"interface": "lo"})), 4, "lo"),
        (changed(json!({"containerName": "No_Name"})), 7, "No_Name"),
        (changed(json!({"runtimeConfig": {"mac": "02:00:00:00:00:01"}})), 2, "02:00:00:00:00:01"),
        (changed(json!({"runtimeConfig": {"ips": ["10.99.0.1"]}})), 7, "10.99.0.1"),
        (changed(json!({"runtimeConfig": {"ips": ["banana"]}})), 7, "banana"),
        (changed(json!({"runtimeConfig": {"ips": "10.77.0.9"}})), 7, "ips"),
        (changed(json!({"prevResult": {"ips": 7}})), 6, ""),
    ];
    for (input, code, word) in &cases {
        let said = here.raw(&good, input)?;
        said.refuses(*code, &[word]);
        assert!(said.json["cniVersion"].is_string() && said.json["msg"].is_string(), "{said:?}");
    }
    let with = |name: &'static str, value: &'static str| {
        let mut all = good.clone();
        all.retain(|(other, _)| *other != name);
        all.push((name, value));
        all
    };
    for (environment, code, word) in [
        (with("CNI_COMMAND", "PLEASE"), 4, "CNI_COMMAND"),
        (with("CNI_COMMAND", ""), 4, "CNI_COMMAND"),
        (with("CNI_CONTAINERID", ""), 4, "CNI_CONTAINERID"),
        (with("CNI_CONTAINERID", "../../x"), 4, "CNI_CONTAINERID"),
        (with("CNI_IFNAME", "a/b"), 4, "CNI_IFNAME"),
        (with("CNI_NETNS", ""), 4, "CNI_NETNS"),
        (with("CNI_ARGS", "FOO=bar"), 4, "FOO"),
        (with("CNI_ARGS", "ZNET_NAME"), 4, "CNI_ARGS"),
    ] {
        here.raw(&environment, conf(json!({})).to_string())?.refuses(code, &[word]);
    }
    assert!(!links(&container)?.contains("eth0"));
    assert!(here.attached()?.is_empty() && containers(&world)?.is_empty());
    // After all this it works.
    here.raw(&good, conf(json!({})).to_string())?.well();
    world.passed();
    Ok(())
}

#[test]
fn namespaces_that_are_gone_the_hosts_or_another_containers_are_refused() -> Result {
    let (mut world, token) = acme("cni-netns")?;
    let here = place(&mut world, "n1", &[&token])?;
    let conf = conf(json!({}));
    let web = here.container("web")?;
    here.add("web", &conf)?.well();
    here.call("ADD", "gone", "/run/netns/gone", &conf)?.refuses(3, &["/run/netns/gone"]);
    here.call("ADD", "gone", "/proc/999999999/ns/net", &conf)?.refuses(3, &["999999999"]);
    here.call("ADD", "host", "/proc/self/ns/net", &conf)?.refuses(4, &["CNI_NETNS", "host"]);
    let agent = format!("/proc/{}/ns/net", here.node.agent()?.pid());
    here.call("ADD", "host", &agent, &conf)?.refuses(4, &["CNI_NETNS", "host"]);
    here.call("ADD", "file", "/etc/hostname", &conf)?.refuses(4, &["CNI_NETNS", "not a network namespace"]);
    let other_kind = format!("/proc/{}/ns/uts", here.node.agent()?.pid());
    here.call("ADD", "uts", &other_kind, &conf)?.refuses(4, &["CNI_NETNS", "not a network namespace"]);
    // Whatever interface it asks for: the namespace is another container's.
    let mut other = environment("ADD", "other", "/run/netns/web");
    other.retain(|(name, _)| *name != "CNI_IFNAME");
    other.push(("CNI_IFNAME", "eth7"));
    here.raw(&other, conf.to_string())?.refuses(103, &["web"]);
    assert!(!links(&web)?.contains("eth7"));
    here.wait_left(&world, &["web"])?;
    // The namespace of a container that was deleted is nobody's.
    here.del("web", &conf)?.well();
    here.raw(&other, conf.to_string())?.well();
    world.passed();
    Ok(())
}
