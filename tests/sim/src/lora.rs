//! The LoRA adapters of a server.

use crate::config::LoraModule;

/// An adapter that requests may name as their model.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Number inside the engine, never reused.
    pub index: u32,
    /// Name, path, base model.
    pub module: LoraModule,
}

/// All adapters loaded now, in the order in which they were loaded.
#[derive(Debug, Default)]
pub struct Adapters {
    loaded: Vec<Adapter>,
    /// Names of all adapters ever loaded, by index.
    names: Vec<String>,
}

impl Adapters {
    /// Loads the adapters of the configuration.
    pub fn new(modules: &[LoraModule]) -> Self {
        let mut adapters = Adapters::default();
        for module in modules {
            adapters.load(module.clone());
        }
        adapters
    }

    /// Loads an adapter. False when one of this name is loaded already.
    pub fn load(&mut self, module: LoraModule) -> bool {
        if self.find(&module.name).is_some() {
            return false;
        }
        let index = self.names.len() as u32;
        self.names.push(module.name.clone());
        self.loaded.push(Adapter { index, module });
        true
    }

    /// Unloads an adapter. False when none of this name is loaded.
    pub fn unload(&mut self, name: &str) -> bool {
        let before = self.loaded.len();
        self.loaded.retain(|adapter| adapter.module.name != name);
        self.loaded.len() < before
    }

    /// The adapter of this name.
    pub fn find(&self, name: &str) -> Option<&Adapter> {
        self.loaded
            .iter()
            .find(|adapter| adapter.module.name == name)
    }

    /// All adapters.
    pub fn list(&self) -> &[Adapter] {
        &self.loaded
    }

    /// Whether there ever was an adapter.
    pub fn ever_used(&self) -> bool {
        !self.names.is_empty()
    }

    /// Names for engine numbers, separated by commas.
    pub fn names(&self, indices: &[u32]) -> String {
        let names: Vec<&str> = indices
            .iter()
            .filter_map(|index| self.names.get(*index as usize))
            .map(String::as_str)
            .collect();
        names.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outlive_unloading() {
        let module = |name: &str| LoraModule {
            name: name.into(),
            path: "p".into(),
            base_model: None,
        };
        let mut adapters = Adapters::new(&[module("a")]);
        assert!(!adapters.load(module("a")));
        assert!(adapters.load(module("b")));
        assert!(adapters.unload("a"));
        assert!(!adapters.unload("a"));
        assert!(adapters.load(module("a")));
        assert_eq!(adapters.find("a").map(|adapter| adapter.index), Some(2));
        assert_eq!(adapters.names(&[0, 1, 9]), "a,b");
    }
}
