//! The fuzzer of [`znet_wg_fuzz::uapi_text`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| znet_wg_fuzz::uapi_text(data));
