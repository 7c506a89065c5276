//! What is measured: which systems with which workloads.

use std::fmt;

use peers_common::{Durability, Workload};

/// What a system is compared as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Ours,
    Peer,
    /// Another engine, which no limit of SQLite holds for: shown, and not what the peers' best is taken from.
    Outsider,
    /// A loop on a plain connection.
    Limit,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct System {
    pub(crate) name: &'static str,
    /// The program that has it.
    pub(crate) program: &'static str,
    pub(crate) role: Role,
}

const SYSTEMS: [System; 12] = [
    System { name: "solewriter", program: "peers-rusqlite", role: Role::Ours },
    System { name: "tokio-rusqlite", program: "peers-rusqlite", role: Role::Peer },
    System { name: "async-sqlite", program: "peers-rusqlite", role: Role::Peer },
    System { name: "deadpool-sqlite", program: "peers-rusqlite", role: Role::Peer },
    System { name: "r2d2_sqlite", program: "peers-sqlx", role: Role::Peer },
    System { name: "sqlx-pool-10", program: "peers-sqlx", role: Role::Peer },
    System { name: "sqlx-writer-1", program: "peers-sqlx", role: Role::Peer },
    System { name: "turso", program: "peers-turso", role: Role::Outsider },
    System { name: "raw-autocommit", program: "peers-rusqlite", role: Role::Limit },
    System { name: "raw-64", program: "peers-rusqlite", role: Role::Limit },
    System { name: "raw-512", program: "peers-rusqlite", role: Role::Limit },
    System { name: "raw", program: "peers-rusqlite", role: Role::Limit },
];

impl System {
    fn takes_part(&self, workload: Workload, clients: usize, is_quick: bool) -> bool {
        use Workload::{Closure, Import, Insert, Marketplace, ReadModifyWrite, Reads};
        match self.name {
            "raw-autocommit" => matches!(workload, Insert | ReadModifyWrite) && clients == 1,
            "raw-64" => matches!(workload, Insert | Closure | ReadModifyWrite) && clients == 64,
            "raw-512" => matches!(workload, Insert | Closure | ReadModifyWrite) && clients == 512,
            "raw" => matches!(workload, Reads | Import),
            // A long build; and its full-text search is not SQLite's, which the marketplace needs.
            "turso" => !is_quick && !matches!(workload, Closure | Marketplace),
            // Peers have one way for single statements and closures: their figures are those of `Insert`.
            _ => workload != Closure || self.role == Role::Ours,
        }
    }
}

/// What is compared with each other.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) workload: Workload,
    pub(crate) clients: usize,
    pub(crate) durability: Durability,
    pub(crate) systems: Vec<&'static System>,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, {} clients", self.workload, self.durability, self.clients)
    }
}

pub(crate) fn cells(is_quick: bool) -> Vec<Cell> {
    let workloads: [(Workload, &[usize]); 9] = [
        (Workload::Insert, if is_quick { &[1, 64, 512] } else { &[1, 8, 64, 512, 4096] }),
        (Workload::Closure, if is_quick { &[512] } else { &[64, 512] }),
        (Workload::ReadModifyWrite, if is_quick { &[64] } else { &[64, 512] }),
        (Workload::Mixed, &[64]),
        (Workload::Reads, &[8]),
        (Workload::Import, &[1]),
        (Workload::ImportBeside, &[1]),
        (Workload::Marketplace, &[3]),
        (Workload::OpenLoop, &[1]),
    ];
    let mut cells = Vec::new();
    for durability in [Durability::Full, Durability::Normal] {
        for (workload, clients) in workloads {
            cells.extend(clients.iter().map(|&clients| Cell {
                workload,
                clients,
                durability,
                systems:
                    SYSTEMS.iter().filter(|system| system.takes_part(workload, clients, is_quick)).collect(),
            }));
        }
    }
    cells
}
