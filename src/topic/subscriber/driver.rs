//! The driver: the one task of a subscriber. It takes what comes off the socket, and asks for confirmations
//! again after a new connection.

use std::sync::Arc;

use super::shared::Shared;
use crate::transport::SubscribeReceiver;

pub(super) async fn drive(shared: Arc<Shared>, mut receiver: SubscribeReceiver) {
    let mut batch = Vec::new();
    let mut seen = shared.sender.connection_generation();
    let mut was_connected = shared.sender.is_connected();
    loop {
        tokio::select! {
            biased;
            received = receiver.receive(&mut batch) => {
                if received.is_err() {
                    break;
                }
                shared.accept(&mut batch);
                if shared.lock().buffer.is_overflowed() {
                    shared.sender.close().await;
                    break;
                }
            }
            changed = shared.sender.connection_changed(seen) => {
                let Ok(generation) = changed else { break };
                let again = was_connected || generation > seen + 1;
                seen = generation;
                if shared.sender.is_connected() {
                    if again && shared.ask_again().await.is_err() {
                        break;
                    }
                    was_connected = true;
                }
            }
        }
    }
    shared.end();
}
