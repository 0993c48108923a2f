//! FreeU's factors as text.

use std::str::FromStr;

use super::Items;
use crate::models::unet::FreeU;
use crate::request::between;
use crate::request::grammar::{Key, Kind};
use crate::{Error, Result};

const FIELD: &str = "freeu";

const GRAMMAR: &str = "b1=1.5,b2=1.6,s1=0.9,s2=0.2";

const KEYS: [Key; 4] = [
    Key::new("b1", Kind::Text),
    Key::new("b2", Kind::Text),
    Key::new("s1", Kind::Text),
    Key::new("s2", Kind::Text),
];

pub(super) fn validate(free_u: &FreeU) -> Result<()> {
    let FreeU { b1, b2, s1, s2 } = *free_u;
    [b1, b2, s1, s2].into_iter().try_for_each(|factor| between(FIELD, Some(factor), 0.0, 100.0))
}

impl FromStr for FreeU {
    type Err = Error;

    /// Reads `b1=1.5,b2=1.6,s1=0.9,s2=0.2`; what is left out is the default.
    fn from_str(text: &str) -> Result<Self> {
        let items = Items::read((FIELD, GRAMMAR), &KEYS, text)?;
        let mut free_u = Self::default();
        items.set("b1", &mut free_u.b1)?;
        items.set("b2", &mut free_u.b2)?;
        items.set("s1", &mut free_u.s1)?;
        items.set("s2", &mut free_u.s2)?;
        Ok(free_u)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_that_are_left_out_are_the_usual_ones() {
        let read = |text: &str| text.parse::<FreeU>();
        let usual = FreeU::default();
        assert_eq!(read("s2=0.4,b1=1.2").unwrap(), FreeU { s2: 0.4, b1: 1.2, ..usual });
        for wrong in ["", "1.5", "b3=1", "b1=x", "b1=1,b1=1", "s2=0.4, b1=1.2"] {
            assert_eq!(read(wrong).unwrap_err().kind().exit_code(), 2, "{wrong}");
        }
        for wrong in ["b1=-1", "s2=NaN", "b2=101"] {
            assert!(validate(&read(wrong).unwrap()).is_err(), "{wrong}");
        }
    }
}
