//! On a node whose packets the kernel moves. `./x test --kernel` runs these in a kernel that has WireGuard.

use znet_tests::{FIRST_PACKET, Node, NodeOptions, Result};

use crate::dockerd::{Docker, SOON, acme};

#[test]
#[ignore = "needs WireGuard in the kernel: ./x test --kernel"]
fn docker_gets_its_containers_from_an_engine_beside_the_kernels_devices() -> Result {
    let (mut world, token) = acme("docker-kernel")?;
    let flags = ["--backend", "kernel"].map(str::to_owned).to_vec();
    let host = world.host("k1")?;
    let node = Node::start("k1", &host, NodeOptions { tokens: vec![token.clone()], flags })?;
    node.wait_connected("acme")?;
    let near = node.attach("acme", "near")?;
    let mut docker = Docker::start_at(node)?;
    assert!(docker.node.status()?["engine_pid"].is_null(), "an engine that nobody needs");
    let other = world.node("e1", &[&token])?;
    let far = other.attach("acme", "far")?;
    let web = docker.run("web")?;
    docker.wait_settled("web")?;
    let reaches = || -> Result {
        for address in [&web.v6, &web.v4] {
            near.wait_reaches(address.parse()?, FIRST_PACKET)?;
            far.wait_reaches(address.parse()?, FIRST_PACKET)?;
        }
        near.reaches_all([&far], FIRST_PACKET)
    };
    reaches()?;
    let status = docker.node.status()?;
    assert_eq!(status["backend"]["kind"], "kernel");
    let engine = docker.node.engine_pid()?;
    docker.node.kill_agent()?;
    reaches()?;
    docker.node.launch()?;
    docker.node.wait_connected("acme")?;
    assert_eq!(docker.node.engine_pid()?, engine);
    reaches()?;
    // An engine that is killed is followed by one that has the same device.
    docker.node.host().command("kill").args(["-9", &engine.to_string()]).run()?;
    far.wait_reaches(web.v6.parse()?, SOON)?;
    docker.stop("web")?;
    docker.wait_here(&["near"])?;
    near.reaches_all([&far], FIRST_PACKET)?;
    // Nothing needs it any more when the agent starts the next time.
    docker.node.kill_agent()?;
    docker.node.launch()?;
    assert!(docker.node.status()?["engine_pid"].is_null(), "an engine that nobody needs");
    near.reaches_all([&far], FIRST_PACKET)?;
    world.passed();
    Ok(())
}
