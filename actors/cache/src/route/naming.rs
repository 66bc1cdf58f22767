//! In which ways the blocks of one prompt are named: one for each key space of a route's holders, and where a space's hashes cover where
//! an adapter was loaded from, one for each place that the endpoints say (`root` in their model lists).

use super::rows::Space;
use quorate_routing::Endpoint;
use quorate_routing::pipeline::Row;
use std::sync::Arc;

/// Places that are told apart; endpoints of one pool load an adapter from one, as a rule.
const MOST_PATHS: usize = 16;

/// One way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Naming<'a> {
    /// Place of the key space.
    pub space: usize,
    /// Where the adapter was loaded from, if that counts.
    pub lora_path: Option<&'a str>,
    /// The number of this path by row; without an entry: all rows are named so.
    rows: Option<(&'a [Option<u8>], u8)>,
}

impl Naming<'_> {
    /// Whether the endpoint in this row names its blocks so, if it is of the space.
    pub fn is_of(&self, row: Row) -> bool {
        self.rows
            .is_none_or(|(of, path)| of.get(row).copied().flatten() == Some(path))
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Namings {
    /// Space, and number of the path.
    all: Vec<(usize, Option<u8>)>,
    paths: Vec<String>,
    by_row: Vec<Option<u8>>,
}

impl Namings {
    pub fn clear(&mut self) {
        self.all.clear();
        self.paths.clear();
        self.by_row.clear();
    }

    /// Finds them for a prompt with the adapter `lora`.
    pub fn find(&mut self, spaces: &[Space], lora: Option<&str>, endpoints: &[Arc<Endpoint>]) {
        self.clear();
        let counts = |space: &Space| lora.is_some() && space.space.hashes_lora_path();
        if let Some(lora) = lora.filter(|_| spaces.iter().any(counts)) {
            for endpoint in endpoints {
                let models = endpoint.models();
                let model = models.iter().find(|model| model.id == lora);
                let path = model.and_then(|model| model.root.as_deref());
                let number = path.and_then(|path| self.number(path));
                self.by_row.push(number);
            }
        }
        for (place, space) in spaces.iter().enumerate() {
            match counts(space) {
                true => {
                    let paths = 0..u8::try_from(self.paths.len()).unwrap_or(u8::MAX);
                    self.all.extend(paths.map(|path| (place, Some(path))));
                }
                false => self.all.push((place, None)),
            }
        }
    }

    fn number(&mut self, path: &str) -> Option<u8> {
        let known = self.paths.iter().position(|known| known == path);
        let place = known.or_else(|| {
            (self.paths.len() < MOST_PATHS).then(|| {
                self.paths.push(path.to_owned());
                self.paths.len() - 1
            })
        });
        place.and_then(|place| u8::try_from(place).ok())
    }

    /// All of them, each at its place.
    pub fn iter(&self) -> impl Iterator<Item = Naming<'_>> {
        self.all.iter().map(|(space, path)| Naming {
            space: *space,
            lora_path: path.and_then(|path| self.paths.get(usize::from(path)).map(String::as_str)),
            rows: path.map(|path| (self.by_row.as_slice(), path)),
        })
    }

    /// The place of the one by which the endpoint of a space in this row names its blocks.
    pub fn place(&self, space: usize, row: Row) -> Option<usize> {
        self.iter()
            .position(|naming| naming.space == space && naming.is_of(row))
    }
}
