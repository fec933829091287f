#!/usr/bin/env -S npx ts-node
/**
 * A TCP port scanner: it tries to connect to one port of one host, and says
 * whether something listens there.
 *
 *     npx ts-node portscanner.ts -H localhost -p 54321
 *
 * It prints this, or `[OK] TCP port 54321 is open` as the second line:
 *
 *     Connecting to 127.0.0.1...
 *     [FAILED] TCP port 54321 is closed
 *
 * Its exit status is 0 for an open port, 1 for a closed one, and 2 where it
 * could not find out.
 */
import { isIP, Socket } from 'node:net';
import yargs from 'yargs';

process.stdout.on('error', () => {}); // our reader has gone (EPIPE): the exit status still tells

const { host, port } = yargs(process.argv.slice(2))
  .locale('en') // or it would speak the language of LANG
  .usage('Usage: npx ts-node portscanner.ts -H <host> -p <port>')
  .option('host', {
    alias: 'H',
    describe: 'IPv4 address, IPv6 address or name (looked up as IPv4)',
    type: 'string',
    requiresArg: true,
    demandOption: true,
    coerce: parseHost,
  })
  .option('port', {
    alias: 'p',
    describe: 'TCP port to scan, 1 to 65535',
    type: 'string', // a number would let 1e3 and 0x50 pass
    requiresArg: true,
    demandOption: true,
    coerce: parsePort,
  })
  .alias('help', 'h')
  .strict()
  .fail((message) => {
    fail(message);
    process.exit();
  })
  .parseSync();

scan(host, port).catch((error: NodeJS.ErrnoException) => fail(`cannot scan port ${port} of ${host} (${error.code})`));

/** Prints the address of host and whether port is open there. */
async function scan(host: string, port: number): Promise<void> {
  const address = await addressOf(host); // gethostbyname()
  console.log(`Connecting to ${address}...`);
  const open = await isOpen(address, port);
  console.log(open ? `[OK] TCP port ${port} is open` : `[FAILED] TCP port ${port} is closed`);
  process.exitCode = open ? 0 : 1;
}

/**
 * The IPv4 address of a name; an IPv4 or IPv6 address stays as it is. Rejects
 * with ENOTFOUND and other errors of getaddrinfo(3).
 */
function addressOf(host: string): Promise<string> {
  return new Promise((resolve, reject) => {
    if (isIP(host)) return resolve(host);
    // A socket looks a name up before it connects. We take the address and leave before it goes on.
    const socket = new Socket();
    socket.connect({ host, port: 1, family: 4 }); // family 4 is AF_INET
    socket.on('lookup', (error, address) => {
      socket.destroy();
      if (error) reject(error);
      else resolve(address);
    });
  });
}

/**
 * Whether the port takes connections: true when the handshake succeeds, false
 * when it is refused with an RST (RFC 9293, 3.5.2). Rejects on any other
 * error of connect(2), since that says nothing of the port.
 */
function isOpen(address: string, port: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const socket = new Socket();
    socket.connect(port, address); // socket(AF_INET, SOCK_STREAM), connect()
    socket.on('connect', () => {
      resolve(!isSelfConnection(socket));
      socket.destroy(); // close()
    });
    socket.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ECONNREFUSED') resolve(false);
      else reject(error);
    });
  });
}

/**
 * Whether TCP connected the socket to itself. This happens on the own machine
 * when the port is an ephemeral one, nothing listens there, and the system
 * picks just this one as our local port: the SYN meets itself (simultaneous
 * open, RFC 9293, 3.5).
 */
function isSelfConnection(socket: Socket): boolean {
  return socket.localPort === socket.remotePort && socket.localAddress === socket.remoteAddress;
}

/** The value of --host. Throws where there is none, or more than one. */
function parseHost(host: unknown): string {
  if (typeof host !== 'string' || host === '') throw new Error('-H takes one name or address');
  return host;
}

/** The value of --port as a number. Throws where it is not a whole number from 1 to 65535. */
function parsePort(port: unknown): number {
  if (!/^\d{1,5}$/.test(String(port)) || Number(port) < 1 || Number(port) > 65535) {
    throw new Error(`port "${port}" is not a whole number from 1 to 65535`);
  }
  return Number(port);
}

/** The one way to fail: says on stderr what failed, and sets the exit status of a scan that could not be done. */
function fail(what: string): void {
  console.error(`portscanner.ts: ${what}`);
  process.exitCode = 2;
}
