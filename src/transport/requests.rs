//! What a router has received at once: requests, and whom each is from.

use std::collections::VecDeque;

use super::Received;
use super::sockets::Peer;

/// Requests in the order of their arrival. A message may have many, all of them its peer's, which is
/// therefore kept once a message: peers are counted references, and requests are small.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Each with its peer's place below.
    requests: VecDeque<(usize, Received)>,
    /// Whom the messages are from.
    peers: Vec<Peer>,
}

impl Requests {
    /// Requests in it.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Takes those of a peer's message.
    pub fn of(&mut self, peer: Peer) -> impl FnMut(Received) {
        let place = self.peers.len();
        self.peers.push(peer);
        let requests = &mut self.requests;
        move |received| requests.push_back((place, received))
    }

    /// Takes the next request, and the place of its [peer](Self::peer). After the last one, all peers are
    /// forgotten.
    pub fn next(&mut self) -> Option<(usize, Received)> {
        let next = self.requests.pop_front();
        if next.is_none() {
            self.peers.clear();
        }
        next
    }

    /// Whose a request is, until the next is taken after the last.
    pub fn peer(&self, place: usize) -> &Peer {
        &self.peers[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Malformed;

    #[test]
    fn every_request_is_handed_over_once_as_its_own_peers() {
        let mut requests = Requests::default();
        for _ in 0..2 {
            for (peer, parts) in [(7, &[1, 2][..]), (8, &[3]), (9, &[]), (7, &[4])] {
                let of_peer = requests.of(Peer::Memory(peer));
                let malformed = |parts: &usize| Err(Malformed { parts: *parts });
                parts.iter().map(malformed).for_each(of_peer);
            }
            assert_eq!(requests.len(), 4);
            let mut handed_over = Vec::new();
            while let Some((place, received)) = requests.next() {
                match (requests.peer(place), received) {
                    (Peer::Memory(peer), Err(Malformed { parts })) => {
                        handed_over.push((*peer, parts));
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(handed_over, [(7, 1), (7, 2), (8, 3), (7, 4)]);
            assert!(requests.is_empty() && requests.peers.is_empty());
        }
    }
}
