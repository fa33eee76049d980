//! Which of the configured clusters is the primary, and which standby a backup is copied from.
//!
//! Promises: the servers themselves are asked; the first standby, in the order of their numbers, is taken. One that does
//! not answer is told and passed over, as long as one that is needed is found. Refuses two primaries: one of them is
//! behind, and which of them cannot be told.

use std::path::PathBuf;

use crate::actions::error::{Error, Result, with_causes};
use crate::actions::standby::StandbyError;
use crate::cluster::server::Server;
use crate::monitor::{Monitor, Problem};

/// A configured cluster.
pub struct Candidate {
    /// Its number, as in `pg2-path`.
    pub number: u32,
    /// Its data directory.
    pub pgdata: PathBuf,
    /// The session with its server, or why there is none.
    pub server: Result<Box<dyn Server>>,
}

/// Where the files of a cluster are copied from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyFrom {
    /// The primary.
    Primary,
    /// A standby.
    Standby,
    /// A standby if there is one, else the primary.
    PreferStandby,
}

/// A cluster whose server answered.
pub struct Member {
    /// Its data directory.
    pub pgdata: PathBuf,
    /// The session with its server.
    pub server: Box<dyn Server>,
}

/// Who is what.
pub struct Roles {
    /// The primary.
    pub primary: Member,
    /// The standby to copy from, if one is to be copied from.
    pub standby: Option<Member>,
}

/// Asks all clusters what they are.
pub fn find_roles(
    candidates: Vec<Candidate>,
    copy_from: CopyFrom,
    monitor: &dyn Monitor,
) -> Result<Roles> {
    let alone = candidates.len() == 1;
    let (mut primary, mut standby): (Option<Member>, Option<Member>) = (None, None);
    for candidate in candidates {
        let (number, pgdata) = (candidate.number, candidate.pgdata);
        let asked = candidate.server.and_then(|mut server| {
            let identity = server.identity().map_err(Error::Cluster)?;
            Ok((server, identity.in_recovery))
        });
        let (server, in_recovery) = match asked {
            Ok(answer) => answer,
            Err(error) if alone => return Err(error),
            Err(error) => {
                monitor.problem(&Problem {
                    object: format!("unable to check pg{number}"),
                    message: with_causes(&error),
                });
                continue;
            }
        };
        let member = Member { pgdata, server };
        match (&primary, in_recovery) {
            (_, true) => standby = standby.or(Some(member)),
            (None, false) => primary = Some(member),
            (Some(one), false) => {
                return Err(Error::Standby(StandbyError::SeveralPrimaries {
                    one: one.pgdata.clone(),
                    other: member.pgdata,
                }));
            }
        }
    }
    let primary = primary.ok_or(StandbyError::NoPrimary)?;
    match copy_from {
        CopyFrom::Primary => standby = None,
        CopyFrom::Standby if standby.is_none() => return Err(StandbyError::NoStandby.into()),
        CopyFrom::PreferStandby if standby.is_none() => monitor.problem(&Problem {
            object: "backup-standby".to_owned(),
            message: "unable to find a standby to perform the backup, using primary instead"
                .to_owned(),
        }),
        CopyFrom::Standby | CopyFrom::PreferStandby => {}
    }
    Ok(Roles { primary, standby })
}
