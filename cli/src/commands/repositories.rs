//! Which repositories a command works on: all that are configured, in the order of their numbers, or the one of `--repo`.
//!
//! Promises: one that cannot be opened stands in nobody's way until it is needed. Refuses a number that is not configured.

use pgcairn_engine::actions::{self, RepositoryPlace};
use pgcairn_engine::repository::Repository;

use super::location::location;
use crate::error::Error;
use crate::log::Log;
use crate::options::LAST_REPOSITORY;
use crate::settings::Settings;

/// Their numbers; never none.
pub(super) fn numbers(settings: &Settings) -> Result<Vec<u32>, Error> {
    // Whatever is said of a repository, its type has a default then.
    let configured = |number: &u32| settings.text(&format!("repo{number}-type")).is_some();
    let configured: Vec<u32> = (1..=LAST_REPOSITORY).filter(configured).collect();
    match settings.number("repo") {
        None => Ok(configured),
        Some(asked) => configured
            .into_iter()
            .find(|number| i64::from(*number) == asked)
            .map(|number| vec![number])
            .ok_or(Error::RepositoryUnknown { number: asked }),
    }
}

/// The number of the one that a command works on alone.
pub(super) fn first(settings: &Settings, log: &Log) -> Result<u32, Error> {
    let numbers = numbers(settings)?;
    let first = numbers.first().copied().unwrap_or(1);
    if numbers.len() > 1 {
        log.info(&format!(
            "repo option not specified, defaulting to repo{first}"
        ));
    }
    Ok(first)
}

/// The repositories themselves, opened when they are needed.
pub(super) fn places(settings: &Settings) -> Result<Vec<RepositoryPlace>, Error> {
    let place = |number| {
        let location = location(settings, number)?;
        let open = move || actions::open_storage(&location);
        Ok(RepositoryPlace::new(number, open))
    };
    numbers(settings)?.into_iter().map(place).collect()
}

/// The repository of this number.
pub(super) fn open(settings: &Settings, number: u32) -> Result<Repository, Error> {
    let storage = actions::open_storage(&location(settings, number)?)?;
    Ok(actions::open_repository(storage)?)
}
