//! What the launcher tells the router: that a group is to leave.

use std::fmt;
use std::str::FromStr;

use crate::datagrams::{Inbox, Noise};

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Let this group end its step and leave. What it computes goes on elsewhere.
    Drain {
        /// The group's replica.
        replica: u32,
        /// The group's incarnation.
        epoch: u64,
    },
}

/// The router's end.
pub type OrderInbox = Inbox<Order>;

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain { replica, epoch } => write!(f, "drain {replica} {epoch}"),
        }
    }
}

impl FromStr for Order {
    type Err = Noise;

    fn from_str(text: &str) -> Result<Self, Noise> {
        let words: Vec<&str> = text.split(' ').collect();
        match words[..] {
            ["drain", replica, epoch] => Ok(Self::Drain {
                replica: replica.parse().map_err(|_| Noise)?,
                epoch: epoch.parse().map_err(|_| Noise)?,
            }),
            _ => Err(Noise),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_they_are_written() {
        let order = Order::Drain { replica: 1, epoch: u64::MAX };
        assert_eq!(order.to_string().parse::<Order>(), Ok(order));
        for text in ["", "drain", "drain 1", "drain 1 x", "drain 1 2 3", "lost 1 2"] {
            assert_eq!(text.parse::<Order>(), Err(Noise), "{text:?}");
        }
    }
}
