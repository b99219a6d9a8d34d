//! Builds the way to Intel's library where it is installed, and says so where it is not.

use std::env;
use std::path::Path;

const SOURCE: &str = "src/multi_buffer.c";
/// Where distributions have it.
const FOLDERS: [&str; 4] = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"];

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=/usr/include/intel-ipsec-mb.h");
    println!("cargo::rustc-check-cfg=cfg(multi_buffer)");
    let var = |name| env::var(name).unwrap_or_default();
    if var("CARGO_CFG_TARGET_ARCH") != "x86_64" || var("CARGO_CFG_TARGET_OS") != "linux" {
        return;
    }
    let library = FOLDERS.into_iter().find(|folder| Path::new(folder).join("libIPSec_MB.a").exists());
    let built = || {
        cc::Build::new()
            .file(SOURCE)
            .opt_level(2)
            .cargo_warnings(false)
            .try_compile("znet_multi_buffer")
            .is_ok()
    };
    match library {
        Some(folder) if built() => {
            // In the program itself, so that machines on which it runs need not have the library.
            println!("cargo::rustc-link-search=native={folder}");
            println!("cargo::rustc-link-lib=static=IPSec_MB");
            println!("cargo::rustc-cfg=multi_buffer");
        }
        _ => println!(
            "cargo::warning=packets will be encrypted by AWS-LC, for which a processor with AVX-512 needs 40 % more time: \
             Intel's library cannot be built with (Debian: install libipsec-mb-dev)"
        ),
    }
}
