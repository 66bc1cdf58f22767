//! Writes the seeds to where cargo-fuzz looks for them: `corpus/TARGET/`.

use quorate_fuzz::seeds;
use std::path::Path;

fn main() -> std::io::Result<()> {
    for (target, seeds) in seeds::all() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(target);
        std::fs::create_dir_all(&folder)?;
        for (at, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{at}")), seed)?;
        }
    }
    Ok(())
}
