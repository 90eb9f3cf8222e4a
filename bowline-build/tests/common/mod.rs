//! Schemas for one test.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::PathBuf;

use bowline_build::Builder;

/// A directory of schemas that goes away with the test.
pub struct Schemas(pub PathBuf);

impl Schemas {
    pub fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let root =
            std::env::temp_dir().join(format!("bowline-build-{}-{name}", std::process::id()));
        for (file, text) in files {
            let path = root.join("schema").join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, header(file) + text).unwrap();
        }
        std::fs::create_dir_all(root.join("out")).unwrap();
        Self(root)
    }

    pub fn builder(&self) -> Builder {
        Builder::new(self.0.join("schema")).out_dir(self.out())
    }

    /// What was generated for `a.capnp`.
    pub fn code(&self) -> String {
        std::fs::read_to_string(self.out().join("a_bowline.rs")).unwrap()
    }

    pub fn out(&self) -> PathBuf {
        self.0.join("out")
    }
}

/// What each schema begins with: two lines.
pub fn header(file: &str) -> String {
    format!(
        "@0xb0f1a3c5d7e9{:04x};\nusing Bowline = import \"/bowline/bowline.capnp\";\n",
        0x500 + file.len()
    )
}

impl Drop for Schemas {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
