//! What happens to batches on their way.

use serde_json::{Value, json};

/// Shares of the batches that suffer, and what happens once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventFaults {
    /// Share that gets lost, from 0 to 1.
    pub loss: f64,
    /// Share that comes twice.
    pub duplicate: f64,
    /// Share that comes after its successor.
    pub reorder: f64,
    /// So many of the next batches get lost.
    pub drop_next: u64,
    /// Replays are refused.
    pub no_replay: bool,
}

/// What becomes of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives.
    Sent,
    /// It does not.
    Lost,
    /// It arrives twice.
    Twice,
    /// It waits for its successor.
    Late,
}

impl EventFaults {
    /// Parses `loss=0.1,duplicate=0.1,reorder=0.1,drop-next=3,no-replay`.
    pub fn parse(text: &str) -> Result<EventFaults, String> {
        let mut faults = EventFaults::default();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, "true"));
            let value = serde_json::from_str(value)
                .map_err(|_| format!("`{part}` has no value that can be"))?;
            faults.set(key, &value)?;
        }
        faults.check()
    }

    /// Reads the JSON of [`EventFaults::to_json`]; what it leaves out is off.
    pub fn from_json(value: &Value) -> Result<EventFaults, String> {
        let mut faults = EventFaults::default();
        let fields = value.as_object().ok_or("event faults are a JSON object")?;
        for (key, value) in fields {
            faults.set(key, value)?;
        }
        faults.check()
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let wrong = || format!("`{key}` cannot be {value}");
        let share = || value.as_f64().ok_or_else(wrong);
        match key {
            "loss" => self.loss = share()?,
            "duplicate" => self.duplicate = share()?,
            "reorder" => self.reorder = share()?,
            "drop-next" => self.drop_next = value.as_u64().ok_or_else(wrong)?,
            "no-replay" => self.no_replay = value.as_bool().ok_or_else(wrong)?,
            _ => {
                return Err(format!(
                    "there is no event fault `{key}`; there are loss, duplicate, reorder, drop-next, no-replay"
                ));
            }
        }
        Ok(())
    }

    fn check(self) -> Result<EventFaults, String> {
        let shares = [self.loss, self.duplicate, self.reorder];
        if shares.iter().any(|share| !(0.0..=1.0).contains(share))
            || shares.iter().sum::<f64>() > 1.0
        {
            return Err(
                "loss, duplicate and reorder must be from 0 to 1, and 1 at most together".into(),
            );
        }
        Ok(self)
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        json!({
            "loss": self.loss, "duplicate": self.duplicate, "reorder": self.reorder,
            "drop-next": self.drop_next, "no-replay": self.no_replay,
        })
    }

    /// Draws what becomes of the next batch.
    pub fn draw(&mut self, rng: &mut fastrand::Rng) -> Fate {
        if self.drop_next > 0 {
            self.drop_next -= 1;
            return Fate::Lost;
        }
        let at = rng.f64();
        if at < self.loss {
            Fate::Lost
        } else if at < self.loss + self.duplicate {
            Fate::Twice
        } else if at < self.loss + self.duplicate + self.reorder {
            Fate::Late
        } else {
            Fate::Sent
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsed_shown_and_drawn() {
        let faults = EventFaults::parse("loss=0.25, reorder=0.25,drop-next=2,no-replay").unwrap();
        assert_eq!(EventFaults::from_json(&faults.to_json()).unwrap(), faults);
        for wrong in [
            "loss=2",
            "loss=x",
            "los=0.1",
            "loss=0.6,reorder=0.6",
            "no-replay=3",
        ] {
            assert!(EventFaults::parse(wrong).is_err(), "{wrong}");
        }
        let mut rng = fastrand::Rng::with_seed(1);
        let mut faults = faults;
        assert_eq!(
            [faults.draw(&mut rng), faults.draw(&mut rng)],
            [Fate::Lost; 2]
        );
        let fates: Vec<Fate> = (0..1000).map(|_| faults.draw(&mut rng)).collect();
        let late = fates.iter().filter(|fate| **fate == Fate::Late).count();
        assert!((150..350).contains(&late) && !fates.contains(&Fate::Twice));
    }
}
