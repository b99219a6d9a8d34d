//! See the library.

fn main() -> std::process::ExitCode {
    znet_agent::cli::main()
}
