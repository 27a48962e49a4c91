// A js-libp2p peer that does what it is told: one JSON command a line in, one JSON result a line out.
//   node --import ./polyfill.mjs peer.mjs
import { createInterface } from 'node:readline'
import { createLibp2p } from 'libp2p'
import { quic } from '@chainsafe/libp2p-quic'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { multiaddr } from '@multiformats/multiaddr'

const ECHO = '/interop/echo/1'
const STREAMS_MAX = 512
const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/udp/0/quic-v1'] },
  transports: [quic()],
  services: { ping: ping(), identify: identify() }
})
const identified = new Map()
node.addEventListener('peer:identify', ({ detail }) => identified.set(String(detail.peerId), detail))

async function echo (stream) {
  for await (const chunk of stream) {
    if (!stream.send(chunk.subarray ? chunk.subarray() : chunk)) await stream.onDrain()
  }
  await stream.close()
}
await node.handle(ECHO, echo, { maxInboundStreams: STREAMS_MAX, maxOutboundStreams: STREAMS_MAX })

const pattern = (index, size) => new Uint8Array(size).map((_, at) => (at * 7 + index) & 255)

async function roundTrip (stream, index, size) {
  let got = 0
  let wrong = 0
  const reading = (async () => {
    for await (const chunk of stream) {
      for (const byte of chunk.subarray()) {
        if (byte !== ((got * 7 + index) & 255)) wrong++
        got++
      }
    }
  })()
  const data = pattern(index, size)
  for (let at = 0; at < size; at += 65536) {
    if (!stream.send(data.subarray(at, Math.min(size, at + 65536)))) await stream.onDrain()
  }
  await stream.close()
  await reading
  return { got, wrong }
}

const commands = {
  async dial ({ address }) {
    const connection = await node.dial(multiaddr(address))
    return { peer: String(connection.remotePeer) }
  },
  async ping ({ peer }) {
    const connection = node.getConnections().find((one) => String(one.remotePeer) === peer)
    return { ms: await node.services.ping.ping(connection.remotePeer) }
  },
  async identify ({ peer }) {
    const connection = node.getConnections().find((one) => String(one.remotePeer) === peer)
    const said = await node.services.identify.identify(connection)
    return {
      peer: String(said.peerId),
      agent: said.agentVersion,
      protocolVersion: said.protocolVersion,
      protocols: said.protocols,
      listen: said.listenAddrs.map(String),
      observed: String(said.observedAddr),
      signed: said.signedPeerRecord != null
    }
  },
  async echo ({ peer, size, streams }) {
    const connection = node.getConnections().find((one) => String(one.remotePeer) === peer)
    const started = performance.now()
    const results = await Promise.all([...Array(streams).keys()].map(async (index) => {
      const stream = await connection.newStream(ECHO, { maxOutboundStreams: STREAMS_MAX })
      return roundTrip(stream, index, size)
    }))
    return {
      got: results.reduce((sum, one) => sum + one.got, 0),
      wrong: results.reduce((sum, one) => sum + one.wrong, 0),
      seconds: (performance.now() - started) / 1000
    }
  },
  async unknown ({ peer }) {
    const connection = node.getConnections().find((one) => String(one.remotePeer) === peer)
    try {
      await connection.newStream('/interop/unknown/1')
      return { refused: false }
    } catch (error) {
      return { refused: true, error: error.name }
    }
  },
  async hangup ({ peer }) {
    for (const connection of node.getConnections()) {
      if (String(connection.remotePeer) === peer) await connection.close()
    }
    return {}
  },
  async connections () {
    return { peers: node.getConnections().map((one) => String(one.remotePeer)) }
  }
}

const say = (result) => process.stdout.write(JSON.stringify(result) + '\n')
say({ ready: true, node: process.version, peer: String(node.peerId), addresses: node.getMultiaddrs().map(String) })
for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...options } = JSON.parse(line)
  try {
    say({ ok: true, ...await commands[command](options) })
  } catch (error) {
    say({ ok: false, error: error.name, message: error.message })
  }
}
await node.stop()
process.exit(0)
