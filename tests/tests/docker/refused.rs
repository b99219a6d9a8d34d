//! What cannot be meant.

use serde_json::json;
use znet_tests::Result;

use crate::dockerd::{Docker, acme, endpoint, id, join, network};

#[test]
fn what_cannot_be_meant_is_refused_with_the_reason_and_leaves_nothing() -> Result {
    let (mut world, token) = acme("docker-refused")?;
    let docker = Docker::start(&mut world, "n1", &token)?;
    // Not the protocol.
    let (status, said) = docker.raw("POST", "NetworkDriver.Join", "{")?;
    assert!(status == 400 && said.contains("Err"), "{status} {said}");
    let (status, said) = docker.raw("GET", "Plugin.Activate", "")?;
    assert!(status == 405 && said.contains("POST"), "{status} {said}");
    let (status, said) = docker.raw("POST", "NetworkDriver.CreateEndpoint", vec![b' '; 3 << 20])?;
    assert!(status == 413 && said.contains("larger"), "{status} {said}");
    docker.refuses("NetworkDriver.Dance", &json!({}), 404, "Dance")?;
    docker.refuses("NetworkDriver.AllocateNetwork", &json!({}), 501, "--scope local")?;
    docker.refuses("NetworkDriver.Leave", &json!({"NetworkID": "../x", "EndpointID": "y"}), 400, "../x")?;
    docker.refuses("NetworkDriver.Leave", &json!({"NetworkID": id("net")}), 400, "EndpointID")?;
    // Networks.
    let create = "NetworkDriver.CreateNetwork";
    docker.refuses(create, &network(&id("x"), json!({})), 400, "-o znet.network=")?;
    docker.refuses(create, &network(&id("x"), json!({"znet.network": "nope"})), 422, "nope")?;
    docker.refuses(create, &network(&id("x"), json!({"mtu": "9", "znet.network": "acme"})), 400, "mtu")?;
    docker.refuses(create, &network(&id("net"), json!({"znet.network": "nope"})), 422, "nope")?;
    let mut pooled = network(&id("x"), json!({"znet.network": "acme"}));
    pooled["IPv4Data"][0]["Pool"] = json!("172.18.0.0/16");
    docker.refuses(create, &pooled, 400, "--ipam-driver null")?;
    // Endpoints.
    let create = "NetworkDriver.CreateEndpoint";
    let with = |interface, options| endpoint("x", json!({"Interface": interface, "Options": options}));
    let foreign = with(json!({"Address": "172.18.0.2/16"}), json!({}));
    docker.refuses(create, &foreign, 400, "--ipam-driver null")?;
    docker.refuses(
        create,
        &with(json!({"MacAddress": "02:00:00:00:00:01"}), json!({})),
        400,
        "--mac-address",
    )?;
    let ports = json!({"com.docker.network.portmap": [{"Proto": 6, "Port": 80, "HostPort": 80}]});
    docker.refuses(create, &with(json!({}), ports), 400, "--publish")?;
    docker.refuses(create, &with(json!({}), json!({"znet.nme": "web"})), 400, "znet.nme")?;
    docker.refuses(create, &with(json!({}), json!({"znet.name": "Web_1"})), 400, "Web_1")?;
    docker.refuses(create, &with(json!({}), json!({"znet.ip": "banana"})), 400, "banana")?;
    docker.refuses(create, &with(json!({}), json!({"znet.ip": "192.0.2.1"})), 400, "192.0.2.1")?;
    let mut unknown = with(json!({}), json!({}));
    unknown["NetworkID"] = json!(id("other"));
    docker.refuses(create, &unknown, 422, "unknown here")?;
    docker.refuses("NetworkDriver.Join", &endpoint("x", join("x")), 422, "docker")?;
    docker.wait_left(&world, &[])?;
    // An endpoint that is there, and its name.
    let made = docker.prepare("web")?;
    docker.refuses(
        create,
        &endpoint("web", json!({"Interface": {}, "Options": {"znet.name": "b"}})),
        409,
        "web",
    )?;
    docker.refuses(
        create,
        &endpoint("b", json!({"Interface": {}, "Options": {"znet.name": "web"}})),
        409,
        "web",
    )?;
    // A Join that is repeated is the same one; another one is not.
    assert_eq!(docker.well("NetworkDriver.Join", &endpoint("web", join("web")))?, made.1);
    docker.refuses("NetworkDriver.Join", &endpoint("web", join("elsewhere")), 409, "web")?;
    docker.enter("web", &made)?;
    docker.wait_settled("web")?;
    docker.refuses("NetworkDriver.Join", &endpoint("web", join("web")), 409, "web")?;
    docker.stop("web")?;
    let host = endpoint("h", json!({"Interface": {}, "Options": {}}));
    docker.well(create, &host)?;
    docker.refuses(
        "NetworkDriver.Join",
        &endpoint("h", json!({"SandboxKey": "/proc/self/ns/net"})),
        422,
        "host",
    )?;
    docker.stop("h")?;
    docker.wait_left(&world, &[])?;
    world.passed();
    Ok(())
}
