//! Random schemas, a later version of each, and the tests of both: build.rs writes them, so that one build compiles all.
//!
//! A schema has structs (some with type parameters), groups, unions with and without names, lists, links, enums,
//! defaults, recursion, and names that mean something to Rust. Its later version has more of all that, added as the
//! language allows. The same seed gives the same schemas.

mod schema;
mod text;

use std::fmt::Write as _;
use std::path::Path;

use schema::Schema;

/// Numbers that a seed decides.
pub struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// Writes `random/random_old/s0.capnp`, `random/random_new/s0.capnp` and so on, and `random_tests.rs`.
pub fn write(out: &Path, seed: u64, count: u64) -> std::io::Result<()> {
    let root = out.join("random");
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    let mut tests = String::new();
    for folder in ["random_old", "random_new"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    for n in 0..count {
        let mut rng = Rng(seed.wrapping_mul(1_000_003).wrapping_add(n));
        let mut schema = Schema::random(&mut rng);
        let old = schema.clone();
        schema.grow(&mut rng);
        for (folder, number, schema) in [("random_old", 0, &old), ("random_new", 1, &schema)] {
            let id = 0xd000_0000_0000_0000 | (number << 32) | n;
            let path = root.join(folder).join(format!("s{n}.capnp"));
            std::fs::write(path, text::capnp(schema, id, n))?;
            tests += &text::values(schema, &format!("{folder}::s{n}"));
        }
        let _ = writeln!(
            tests,
            "#[test]\nfn schema_{n}_of_this_seed_keeps_its_values_and_fingerprints() {{\n{}}}",
            text::checks(&old, n)
        );
    }
    std::fs::write(out.join("random_tests.rs"), tests)
}
