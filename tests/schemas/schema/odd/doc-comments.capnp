@0xe0f1a3c5d7e90312;
# Comments that Markdown and rustdoc would take for code, links and HTML.

using Bowline = import "/bowline/bowline.capnp";
struct Attribute {
  # A set of attributes. For instance:
  #
  #     "/http/user_agent": "Mozilla/5.0 (Macintosh)"
  #     capnp eval x.capnp attr { a 1 }
  #
  # Or with a fence:
  #
  # ```
  # curl -X POST http://localhost/ -d '{"a": 1}'
  # ```
  name @0 :Text;
  # See [other], https://example.org/a_b and [RFC 1234], of type List<Text>, <unclosed>. Path: C:\new "quoted" \u{41}
  other @1 :Text;
  # - one
  #         deep item
}
interface Doc {
  # Usage:
  #
  #     let x = client.get(1)
  #     this is not rust;
  #
  get @0 (a :Text) -> (b :Text) $Bowline.idempotent;
  # Example request:
  #
  #     GET /foo HTTP/1.1
  #     Host: example.org
}
