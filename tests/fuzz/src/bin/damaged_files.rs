//! See the module of this name.
#![no_main]

libfuzzer_sys::fuzz_target!(init: solewriter_fuzz::frame::begin(), |bytes: &[u8]| {
    solewriter_fuzz::damaged_files::run(bytes);
});
