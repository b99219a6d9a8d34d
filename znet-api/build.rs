//! Generates the agents' protocol out of its description; protox compiles it, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["znet/v1/znet.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".znet.v1.WatchEvent").compile_fds(descriptors)?;
    Ok(())
}
