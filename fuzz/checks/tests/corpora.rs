//! Every input that is kept is checked, on any toolchain: those that once were found to break something too.

use std::path::Path;

use lockstep_fuzz_checks::TARGETS;

#[test]
fn what_is_kept_breaks_nothing() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    for (name, check) in TARGETS {
        let folder = corpora.join(name);
        let mut inputs: Vec<_> = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for input in inputs {
            let bytes = std::fs::read(&input).unwrap();
            // The name of what breaks comes with it.
            println!("{name}: {}", input.display());
            check(&bytes);
        }
    }
}
