//! Names and numbers of users and groups.
//!
//! Promises: asks the system once per name or number; one that the system does not know is `None`, never an error. The
//! only file that knows the crate `nix`.

use std::collections::HashMap;

use nix::unistd::{Gid, Group, Uid, User};

/// Translates between names and numbers, remembering the answers.
#[derive(Debug, Default)]
pub struct Owners {
    user_names: HashMap<u32, Option<String>>,
    group_names: HashMap<u32, Option<String>>,
    user_numbers: HashMap<String, Option<u32>>,
    group_numbers: HashMap<String, Option<u32>>,
}

impl Owners {
    /// The name of a user.
    pub fn user_name(&mut self, uid: u32) -> Option<&str> {
        let ask = || {
            User::from_uid(Uid::from_raw(uid))
                .ok()
                .flatten()
                .map(|user| user.name)
        };
        self.user_names.entry(uid).or_insert_with(ask).as_deref()
    }

    /// The name of a group.
    pub fn group_name(&mut self, gid: u32) -> Option<&str> {
        let ask = || {
            Group::from_gid(Gid::from_raw(gid))
                .ok()
                .flatten()
                .map(|group| group.name)
        };
        self.group_names.entry(gid).or_insert_with(ask).as_deref()
    }

    /// The number of a user.
    pub fn user_number(&mut self, name: &str) -> Option<u32> {
        if let Some(known) = self.user_numbers.get(name) {
            return *known;
        }
        let number = User::from_name(name)
            .ok()
            .flatten()
            .map(|user| user.uid.as_raw());
        self.user_numbers.insert(name.to_owned(), number);
        number
    }

    /// The number of a group.
    pub fn group_number(&mut self, name: &str) -> Option<u32> {
        if let Some(known) = self.group_numbers.get(name) {
            return *known;
        }
        let number = Group::from_name(name)
            .ok()
            .flatten()
            .map(|group| group.gid.as_raw());
        self.group_numbers.insert(name.to_owned(), number);
        number
    }
}

/// The name of the user that this process acts as.
pub fn current_user_name() -> Option<String> {
    User::from_uid(Uid::effective())
        .ok()
        .flatten()
        .map(|user| user.name)
}

/// Whether this process may give files to other users.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_number_zero_and_unknown_owners_are_nobody() {
        let mut owners = Owners::default();
        assert_eq!(owners.user_name(0), Some("root"));
        assert_eq!(owners.user_number("root"), Some(0));
        assert_eq!(owners.group_name(0), Some("root"));
        assert_eq!(owners.group_number("root"), Some(0));
        assert_eq!(owners.user_name(3_999_999_999), None);
        assert_eq!(owners.user_number("no such user"), None);
    }
}
