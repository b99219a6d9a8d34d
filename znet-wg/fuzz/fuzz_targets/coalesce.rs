//! The fuzzer of [`znet_wg_fuzz::coalesce`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| znet_wg_fuzz::coalesce(data));
