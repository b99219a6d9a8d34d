//! See the library.

fn main() -> std::process::ExitCode {
    znet_ctl::cli::main()
}
