//! The fuzzer of [`znet_wg_fuzz::udp_input`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| znet_wg_fuzz::udp_input(data));
