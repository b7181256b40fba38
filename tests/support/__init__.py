"""What tests share: servers, and the questions that they ask them."""
