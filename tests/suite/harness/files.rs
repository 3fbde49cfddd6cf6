//! What the directory destination wrote, read back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Every file below a directory, by path.
#[derive(Debug, Default)]
pub struct Files {
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Files {
    /// Reads everything below `root`; nothing where there is no such directory yet.
    pub fn below(root: &Path) -> Self {
        let mut files = Self::default();
        files.read(root, Path::new(""));
        files
    }

    fn read(&mut self, root: &Path, below: &Path) {
        let Ok(entries) = std::fs::read_dir(root.join(below)) else { return };
        for entry in entries.map(Result::unwrap) {
            let path = below.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                self.read(root, &path);
            } else {
                self.files.insert(path, std::fs::read(entry.path()).unwrap());
            }
        }
    }

    /// The paths, relative to the root.
    pub fn paths(&self) -> Vec<&Path> {
        self.files.keys().map(PathBuf::as_path).collect()
    }

    /// All bytes of one stream, in the order of the files' names.
    pub fn of_stream(&self, stream: &str) -> Vec<u8> {
        let of_stream = self.files.iter().filter(|(path, _)| path.starts_with(stream));
        of_stream.flat_map(|(_, bytes)| bytes).copied().collect()
    }

    /// The lines of one stream, each with its LF.
    pub fn lines_of(&self, stream: &str) -> Vec<Vec<u8>> {
        self.of_stream(stream).split_inclusive(|octet| *octet == b'\n').map(<[u8]>::to_vec).collect()
    }

    /// The first components of the paths.
    pub fn streams(&self) -> std::collections::BTreeSet<String> {
        let first = |path: &PathBuf| path.iter().next().unwrap().to_string_lossy().into_owned();
        self.files.keys().map(first).collect()
    }
}
