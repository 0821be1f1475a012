#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| entra_pod_identity_fuzz::endpoint::form_body::check(data));
