//! The fuzz targets for libFuzzer: BASALT_FUZZ_TARGET names the decoder. `tests/fuzz/run` builds and runs them.
#![no_main]

#[path = "decoders.rs"]
mod decoders;

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fuzz_target!(init: choose(), |data: &[u8]| {
    (TARGET.get().expect("chosen before the first input"))(data);
});

/// Finds the target and, with BASALT_FUZZ_CORPUS, writes its samples there as the start of a corpus.
fn choose() {
    let name = std::env::var("BASALT_FUZZ_TARGET").expect("BASALT_FUZZ_TARGET names a decoder");
    let target = decoders::targets().find(|target| target.name == name).expect("the decoder exists");
    if let Ok(folder) = std::env::var("BASALT_FUZZ_CORPUS") {
        for (index, sample) in (target.seeds)().iter().enumerate() {
            let path = Path::new(&folder).join(format!("sample-{index}"));
            std::fs::write(path, sample).expect("the corpus folder can be written");
        }
    }
    TARGET.set(target.run).expect("chosen once");
}
